//! Rules that map facts to colors.
//!
//! Several rules may apply to a frame. A page of a shared library, for example, is code, is mapped,
//! and is page cache. The applicable rule with the highest priority wins, and the priorities can be
//! changed.

use crate::color::Color;
use crate::guest_os::{FrameFacts, FrameUse as U, KernelArea as A};

/// A color and the condition under which a frame has it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The color.
    pub color: Color,
    /// The condition in words, with the frame as *it*.
    pub condition: &'static str,
    applies: fn(&FrameFacts) -> bool,
}

impl Rule {
    /// Whether the rule applies to a frame with these facts.
    #[must_use]
    pub fn applies(&self, facts: &FrameFacts) -> bool {
        (self.applies)(facts)
    }
}

macro_rules! rules {
    ($($color:ident: $condition:literal, $applies:expr;)+) => {
        [$(Rule { color: Color::$color, condition: $condition, applies: $applies }),+]
    };
}

/// All rules, in default priority order.
const RULES: [Rule; 24] = rules! {
    Free: "it is on the page allocator's free lists",
        |f| matches!(f.usage, U::Free | U::FreePerCpu);
    Offline: "the guest returned it to the host",
        |f| f.usage == U::Offline;
    Hugetlb: "it belongs to a hugetlb pool",
        |f| f.usage == U::Hugetlb;
    PageTable: "the kernel marks it as a page table, or a page-table walk visited it",
        |f| f.usage == U::PageTable;
    Slab: "it holds objects of the slab allocator",
        |f| matches!(f.usage, U::Slab | U::LargeKmalloc);
    FileCode: "it is page cache of a file, and a process maps it executable",
        |f| f.usage == U::File && f.user_executable;
    FileMapped: "it is page cache of a file, and a process maps it",
        |f| f.usage == U::File && f.user_mapped;
    FileCache: "it is page cache of a file",
        |f| f.usage == U::File;
    BlockCache: "it is page cache of a block device",
        |f| f.usage == U::BlockDevice;
    Shared: "it is page cache of a memory file",
        |f| f.usage == U::Shared;
    AnonymousCode: "it is anonymous memory that a process maps executable",
        |f| f.usage == U::Anonymous && f.user_executable;
    Anonymous: "it is anonymous memory, or in the swap cache",
        |f| matches!(f.usage, U::Anonymous | U::SwapCache);
    PageTable: "it is reserved, and a page-table walk visited it",
        |f| f.usage == U::Reserved && f.is_table;
    KernelText: "it is reserved, and the kernel image maps it executable",
        |f| f.usage == U::Reserved && f.area == A::Text;
    KernelRodata: "it is reserved, and the kernel image maps it read-only",
        |f| f.usage == U::Reserved && f.area == A::Rodata;
    KernelData: "it is reserved, and the kernel image maps it writable",
        |f| f.usage == U::Reserved && f.area == A::Data;
    PerCpu: "the kernel allocated it for per-CPU variables",
        |f| matches!(f.usage, U::Reserved | U::Allocated) && f.area == A::PerCpu;
    FrameTable: "it holds a part of the frame table",
        |f| matches!(f.usage, U::Reserved | U::Allocated) && f.area == A::FrameTable;
    KernelModule: "the kernel allocated it, and maps it as a module or executable",
        |f| matches!(f.usage, U::Reserved | U::Allocated) && f.area == A::Module;
    KernelStack: "the kernel allocated it for a task's stack",
        |f| matches!(f.usage, U::Reserved | U::Allocated) && f.area == A::Stack;
    Vmalloc: "the kernel allocated it, and maps it in its vmalloc area",
        |f| f.usage == U::Allocated && f.area == A::Vmalloc;
    Reserved: "it was reserved at boot",
        |f| f.usage == U::Reserved;
    KernelAlloc: "it has references, but no type, mapping or owner",
        |f| f.usage == U::Allocated;
    Unknown: "nothing says what it is",
        |_| true;
};

/// Number of values of each fact that rules may test.
const USES: usize = U::ALL.len();
const AREAS: usize = A::ALL.len();

/// Rules in priority order.
#[derive(Clone, Debug)]
pub struct Rules {
    order: Vec<Rule>,
    /// Index in `order` of the winning rule, for each combination of facts.
    winners: Vec<u8>,
}

impl Default for Rules {
    /// Executable page cache is code, since prefetch treats all code alike (Bryant et al., section
    /// 3.3).
    fn default() -> Self {
        Self::in_order(RULES.to_vec())
    }
}

impl Rules {
    /// Rules that color executable page cache as page cache, which suits deduplication and
    /// eviction.
    #[must_use]
    pub fn page_cache_wins() -> Self {
        Self::default().prefer(&[Color::FileCache])
    }

    /// Gives these colors priority over all other colors, in the given order.
    #[must_use]
    pub fn prefer(&self, colors: &[Color]) -> Self {
        let rank = |rule: &Rule| colors.iter().position(|c| *c == rule.color);
        let mut order = self.order.clone();
        // The last rule always applies.
        let last = order.pop();
        order.sort_by_key(|rule| rank(rule).unwrap_or(colors.len()));
        order.extend(last);
        Self::in_order(order)
    }

    fn in_order(order: Vec<Rule>) -> Self {
        let mut winners = vec![0; USES * AREAS * 8];
        let indexed: Vec<_> = (0u8..).zip(&order).collect();
        for (index, rule) in indexed.into_iter().rev() {
            for facts in combinations() {
                if rule.applies(&facts)
                    && let Some(winner) = winners.get_mut(key(&facts))
                {
                    *winner = index;
                }
            }
        }
        Self { order, winners }
    }

    /// The rule that decides a frame's color.
    #[must_use]
    pub fn deciding(&self, facts: &FrameFacts) -> &Rule {
        let winner = self.winners.get(key(facts)).copied().unwrap_or(u8::MAX);
        let last = &RULES[RULES.len() - 1];
        self.order.get(usize::from(winner)).unwrap_or(last)
    }

    /// The color of a frame.
    #[must_use]
    pub fn color(&self, facts: &FrameFacts) -> Color {
        self.deciding(facts).color
    }

    /// Every rule that applies to a frame, the deciding rule first.
    pub fn applying<'a>(&'a self, facts: &'a FrameFacts) -> impl Iterator<Item = &'a Rule> {
        self.order.iter().filter(|rule| rule.applies(facts))
    }
}

/// Index in `winners` of a combination of facts.
fn key(facts: &FrameFacts) -> usize {
    let flags = usize::from(facts.is_table)
        | usize::from(facts.user_mapped) << 1
        | usize::from(facts.user_executable) << 2;
    (facts.usage as usize * AREAS + facts.area as usize) * 8 + flags
}

/// Every combination of facts that rules may test.
fn combinations() -> impl Iterator<Item = FrameFacts> {
    U::ALL.into_iter().flat_map(|usage| {
        A::ALL.into_iter().flat_map(move |area| {
            (0..8).map(move |flags| FrameFacts {
                usage,
                area,
                is_table: flags & 1 != 0,
                user_mapped: flags & 2 != 0,
                user_executable: flags & 4 != 0,
                ..FrameFacts::default()
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_rules() {
        for rules in [Rules::default(), Rules::page_cache_wins()] {
            for facts in combinations() {
                let naive = rules.order.iter().find(|r| r.applies(&facts)).unwrap();
                assert_eq!(rules.deciding(&facts).condition, naive.condition);
            }
        }
    }

    #[test]
    fn every_color_has_a_rule() {
        for color in Color::ALL {
            assert!(RULES.iter().any(|r| r.color == color), "{color}");
        }
    }

    #[test]
    fn priority_decides_between_colors() {
        let facts = FrameFacts {
            usage: U::File,
            user_mapped: true,
            user_executable: true,
            ..FrameFacts::default()
        };
        assert_eq!(Rules::default().color(&facts), Color::FileCode);
        assert_eq!(Rules::page_cache_wins().color(&facts), Color::FileCache);
        let colors: Vec<_> = Rules::default().applying(&facts).map(|r| r.color).collect();
        let expected = [Color::FileCode, Color::FileMapped, Color::FileCache, Color::Unknown];
        assert_eq!(colors, expected);
    }

    #[test]
    fn preferring_unknown_changes_nothing_known() {
        let rules = Rules::default().prefer(&[Color::Unknown]);
        let facts = FrameFacts { usage: U::Slab, ..FrameFacts::default() };
        assert_eq!(rules.color(&facts), Color::Slab);
    }
}
