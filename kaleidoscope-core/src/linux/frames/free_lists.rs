//! The order in which the guest's allocator will hand out its free frames.
//!
//! To allocate a single frame, Linux takes the first frame of the current CPU's list. If that list
//! is empty, the CPU refills it with a batch from the zone's lists: the first block of the smallest
//! nonempty order, of which it uses the lowest part if the block is larger than needed. So each
//! per-CPU list is one stream of frames, and the lists of all orders of one zone and migration type
//! together are another stream.
//!
//! Lists are followed from block to block by the links in the frames' records. A block that follows
//! no other block is the first, and its predecessor link points to the list head. The address of
//! the head identifies the list and its stream: the heads of one zone and migration type are
//! separated by the size of the zone's per-order records. So neither symbols nor types are needed.

use crate::addr::FrameIndex;
use crate::color::Order;
use crate::linux::frames::table::FrameTable;
use crate::memory::MemoryLayout;
use bitvec::vec::BitVec;

/// The kind of list that a block is on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::linux) enum ListKind {
    /// A per-CPU list.
    Cpu,
    /// The zone's list for blocks of this order.
    Buddy(u32),
}

/// Consecutive free frames that form one element of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::linux) struct FreeBlock {
    pub(in crate::linux) first: FrameIndex,
    pub(in crate::linux) frames: u32,
    pub(in crate::linux) kind: ListKind,
    pub(in crate::linux) next: u64,
    pub(in crate::linux) prev: u64,
}

impl FreeBlock {
    /// One past the last frame.
    pub(in crate::linux) fn end(&self) -> u32 {
        self.first.0.saturating_add(self.frames)
    }
}

/// Consecutive free frames that are handed out in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    first: FrameIndex,
    frames: u32,
    /// Position of the first frame.
    position: u64,
}

/// The known part of the allocation order of free frames.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct FreeLists {
    /// In ascending order of frame, without overlaps.
    spans: Vec<Span>,
}

/// A list of free blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct List {
    is_buddy: bool,
    /// Equal for all lists of a stream.
    stream: u64,
    kind: ListKind,
    /// Index of the first block.
    start: u32,
}

impl FreeLists {
    /// Follows the lists of these blocks, which must be sorted by frame and must not overlap.
    pub(in crate::linux) fn follow(
        table: &FrameTable,
        layout: &MemoryLayout,
        blocks: &[FreeBlock],
    ) -> Self {
        let links = Links { table, layout, blocks };
        let after: Vec<Option<u32>> = blocks.iter().map(|block| links.after(block)).collect();
        let mut follows: BitVec = BitVec::repeat(false, blocks.len());
        for next in after.iter().flatten() {
            if let Some(mut follows) = follows.get_mut(*next as usize) {
                *follows = true;
            }
        }
        let starts = (0..).zip(blocks).zip(follows.iter().by_vals());
        let starts = starts.filter(|((_, block), follows)| {
            // A block whose predecessor link names a block that does not link back is not the start
            // of a list either.
            !*follows && links.block_at(block.prev).is_none()
        });
        let mut lists: Vec<List> = starts.map(|((n, block), _)| list_of(table, n, block)).collect();
        lists.sort_unstable();

        let mut taken: BitVec = BitVec::repeat(false, blocks.len());
        let mut spans = Vec::new();
        let (mut stream, mut given) = (0_u32, 0_u32);
        let mut last: Option<List> = None;
        for list in lists {
            let is_same = |last: List| (last.is_buddy, last.stream) == (list.is_buddy, list.stream);
            if last.is_some_and(|last| !is_same(last)) {
                (stream, given) = (stream.saturating_add(1), 0);
            }
            last = Some(list);
            let mut next = Some(list.start);
            while let Some(number) = next
                && let Some(block) = blocks.get(number as usize)
                && let Some(mut taken) = taken.get_mut(number as usize)
                && !taken.replace(true)
            {
                let position = Order::position_on_list(stream, given);
                spans.push(Span { first: block.first, frames: block.frames, position });
                given = given.saturating_add(block.frames);
                next = after.get(number as usize).copied().flatten();
            }
        }
        spans.sort_unstable_by_key(|span| span.first);
        Self { spans }
    }

    /// A cursor that returns positions of frames, which must be queried in ascending order.
    pub(crate) fn cursor(&self) -> FreeCursor<'_> {
        FreeCursor { spans: &self.spans }
    }
}

/// The list that starts with this block.
fn list_of(table: &FrameTable, start: u32, block: &FreeBlock) -> List {
    let head = block.prev;
    let stream = match (block.kind, table.free_area_bytes) {
        (ListKind::Buddy(order), Some(bytes)) => {
            head.wrapping_sub(bytes.wrapping_mul(order.into()))
        }
        // The distance to the heads of other orders is unknown: each list is its own stream.
        (ListKind::Buddy(_) | ListKind::Cpu, _) => head,
    };
    List { is_buddy: block.kind != ListKind::Cpu, stream, kind: block.kind, start }
}

/// The links between blocks.
struct Links<'a> {
    table: &'a FrameTable,
    layout: &'a MemoryLayout,
    blocks: &'a [FreeBlock],
}

impl Links<'_> {
    /// Index of the block whose list link is at this address.
    fn block_at(&self, address: u64) -> Option<u32> {
        let gfn = self.table.gfn_of_link(address)?;
        let frame = self.layout.index_of(gfn)?;
        let number = self.blocks.binary_search_by_key(&frame, |block| block.first).ok()?;
        u32::try_from(number).ok()
    }

    /// The next block in the same list, if its link points back.
    fn after(&self, block: &FreeBlock) -> Option<u32> {
        let next = self.block_at(block.next)?;
        let follows = self.blocks.get(next as usize)?;
        let own = self.table.link_address(self.layout.gfn_of(block.first)?)?;
        (follows.kind == block.kind && follows.prev == own.0).then_some(next)
    }
}

/// Looks up free frames in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct FreeCursor<'a> {
    /// The spans that do not end before the last frame.
    spans: &'a [Span],
}

impl FreeCursor<'_> {
    /// The frame's position. Frames on no list that could be followed come last, in frame order.
    pub(crate) fn position(&mut self, frame: FrameIndex) -> u64 {
        while let Some((span, rest)) = self.spans.split_first() {
            let Some(into) = frame.0.checked_sub(span.first.0) else { break };
            if into < span.frames {
                return span.position.saturating_add(into.into());
            }
            self.spans = rest;
        }
        Order::position_on_list(Order::NO_LIST, frame.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gfn, Gva};
    use crate::linux::profile::Profile;
    use crate::linux::vmcoreinfo::VmcoreInfo;
    use proptest::prelude::*;

    const RECORDS: Gva = Gva(0xffff_ea00_0000_0000);
    const ZONE: u64 = 0xffff_8880_0010_0000;
    const AREA: u64 = 104;
    const FRAMES: u64 = 64;

    fn table(area: Option<u64>) -> FrameTable {
        let mut note = "OSRELEASE=6\nSIZE(page)=64\nOFFSET(page.flags)=0\nOFFSET(page.lru)=8\n\
            OFFSET(page.compound_head)=8\nOFFSET(page.mapping)=24\nOFFSET(page.private)=40\n\
            OFFSET(page._mapcount)=48\nOFFSET(page._refcount)=52\n"
            .to_owned();
        if let Some(bytes) = area {
            note += &format!("SIZE(free_area)={bytes}\n");
        }
        let note = VmcoreInfo::parse(note.as_bytes()).unwrap();
        FrameTable::new(RECORDS, &Profile::collect(None, Some(&note))).unwrap()
    }

    fn layout() -> MemoryLayout {
        MemoryLayout::contiguous(FRAMES << 12).unwrap()
    }

    fn link(frame: u32) -> u64 {
        table(None).link_address(Gfn(frame.into())).unwrap().0
    }

    /// The list head for blocks of an order.
    fn head(order: u32, list: u64) -> u64 {
        ZONE + u64::from(order) * AREA + 16 * list
    }

    /// The blocks of one list, in list order.
    fn list(head: u64, kind: ListKind, firsts: &[u32]) -> Vec<FreeBlock> {
        let frames = match kind {
            ListKind::Cpu => 1,
            ListKind::Buddy(order) => 1 << order,
        };
        let at = |n: Option<usize>| n.and_then(|n| firsts.get(n)).map_or(head, |f| link(*f));
        let blocks = firsts.iter().enumerate().map(|(n, first)| FreeBlock {
            first: FrameIndex(*first),
            frames,
            kind,
            next: at(Some(n + 1)),
            prev: at(n.checked_sub(1)),
        });
        blocks.collect()
    }

    /// List number and position of each frame; `None` for frames on no list.
    fn follow(area: Option<u64>, mut blocks: Vec<FreeBlock>) -> Vec<Option<(u32, u32)>> {
        blocks.sort_by_key(|block| block.first);
        let lists = FreeLists::follow(&table(area), &layout(), &blocks);
        let mut cursor = lists.cursor();
        let mut position_of = |frame| {
            let position = cursor.position(FrameIndex(frame));
            let before = u32::try_from(position & u64::from(u32::MAX)).unwrap();
            let list = Order::list_of(position);
            assert!(list.is_some() || before == frame);
            list.map(|list| (list, before))
        };
        (0..u32::try_from(FRAMES).unwrap()).map(&mut position_of).collect()
    }

    #[test]
    fn small_blocks_go_before_large_ones() {
        let cpu = list(0xffff_8880_0000_0460, ListKind::Cpu, &[40, 7]);
        let mut blocks = list(head(0, 1), ListKind::Buddy(0), &[9, 3]);
        blocks.extend(list(head(2, 1), ListKind::Buddy(2), &[16, 12]));
        blocks.extend(list(head(1, 2), ListKind::Buddy(1), &[20]));
        blocks.extend(cpu);
        let found = follow(Some(AREA), blocks.clone());
        let order = |list: u32, found: &[Option<(u32, u32)>]| {
            let on = |n: &usize| found[*n].is_some_and(|(l, _)| l == list);
            let mut frames: Vec<usize> = (0..found.len()).filter(on).collect();
            frames.sort_by_key(|n| found[*n]);
            frames
        };
        assert_eq!(order(0, &found), [40, 7], "the CPU's");
        assert_eq!(order(1, &found), [9, 3, 16, 17, 18, 19, 12, 13, 14, 15]);
        assert_eq!(order(2, &found), [20, 21], "another migration type");
        assert_eq!(found.iter().flatten().count(), 14);
        // With the distance between heads unknown, there are four lists.
        let found = follow(None, blocks);
        assert_eq!(order(1, &found), [9, 3]);
        assert_eq!(order(2, &found), [20, 21]);
        assert_eq!(order(3, &found), [16, 17, 18, 19, 12, 13, 14, 15]);
    }

    #[test]
    fn cycles_end() {
        let mut blocks = list(ZONE, ListKind::Buddy(0), &[1, 2, 3]);
        blocks[2].next = link(1);
        assert_eq!(
            follow(Some(AREA), blocks.clone())[1..4],
            [Some((0, 0)), Some((0, 1)), Some((0, 2))],
            "what comes back is not followed"
        );
        blocks[0].prev = link(3);
        let found = follow(Some(AREA), blocks);
        assert_eq!(found.iter().flatten().count(), 0, "a ring has no first one");
        let mut alone = list(ZONE, ListKind::Buddy(0), &[5]);
        (alone[0].next, alone[0].prev) = (link(5), link(5));
        assert_eq!(follow(Some(AREA), alone)[5], None);
    }

    #[test]
    fn blocks_that_do_not_link_back_are_not_followed() {
        let mut blocks = list(ZONE, ListKind::Buddy(0), &[1, 2, 3, 4]);
        blocks[2].prev = link(1);
        let found = follow(Some(AREA), blocks);
        assert_eq!(found[1..5], [Some((0, 0)), Some((0, 1)), None, None]);
    }

    #[test]
    fn lists_do_not_cross() {
        // A list that leads into another list, and a block of the wrong size in a list.
        let mut blocks = list(ZONE, ListKind::Buddy(0), &[1, 2]);
        blocks.extend(list(ZONE + 16, ListKind::Buddy(0), &[3, 4]));
        blocks[1].next = link(4);
        blocks.extend(list(ZONE + 32, ListKind::Buddy(0), &[5, 8]));
        blocks[5].kind = ListKind::Buddy(1);
        let found = follow(Some(AREA), blocks);
        assert_eq!(
            found[1..6],
            [Some((0, 0)), Some((0, 1)), Some((1, 0)), Some((1, 1)), Some((2, 0))]
        );
        assert_eq!(found[8], None);
    }

    proptest! {
        /// Whatever the links are, no frame appears twice, and every position belongs to one frame.
        #[test]
        fn inconsistent_links_never_repeat_a_frame(
            words in proptest::collection::vec((0u32..70, 0u32..70, 0u32..4), 1..40),
            area in proptest::option::of(any::<u64>()),
        ) {
            let blocks = words.iter().zip((0u32..).step_by(2)).map(|(&(next, prev, kind), first)| {
                let kind = if kind == 0 { ListKind::Cpu } else { ListKind::Buddy(kind) };
                let first = FrameIndex(first);
                let (next, prev) = (link(next), link(prev));
                FreeBlock { first, frames: 1 + first.0 % 2, kind, next, prev }
            });
            let blocks: Vec<_> = blocks.filter(|block| u64::from(block.first.0) < FRAMES).collect();
            let found = follow(area, blocks);
            let mut positions: Vec<_> = found.iter().flatten().collect();
            let all = positions.len();
            positions.sort();
            positions.dedup();
            prop_assert_eq!(positions.len(), all);
        }
    }
}
