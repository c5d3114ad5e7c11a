//! Selectors on small synthetic guests.

use super::*;
use crate::addr::FrameIndex;
use crate::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId};
use crate::fingerprint::{Content, Fingerprint, PartialHash};
use crate::memory::MemoryLayout;
use crate::prefetch::LocalityOrder;
use proptest::prelude::*;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

/// A guest: the contents of its pages as numbers (0: zeros), and the pages that clones write to.
struct Guest {
    locality: Arc<LocalityOrder>,
    pages: Vec<u64>,
    written: Vec<bool>,
}

impl Guest {
    /// A guest with these regions, one page per number, followed by `free` free frames.
    fn new(regions: &[(FrameKind, &str, Vec<u64>)], free: usize) -> Self {
        let (mut frames, mut pages, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (id, (kind, name, held)) in (0..).map(RegionId).zip(regions) {
            let orders = [
                (FrameKind::File, Order::FileOffset, Color::FileCache),
                (FrameKind::Kernel, Order::KernelAddress, Color::KernelText),
                (FrameKind::Slab, Order::FrameNumber, Color::Slab),
                (FrameKind::Anonymous, Order::UserAddress, Color::Anonymous),
            ];
            let (_, order, color) = orders.into_iter().find(|(of, ..)| of == kind).unwrap();
            all.push(Region::new(*kind, order, *name));
            for (position, page) in (0..).zip(held) {
                let region = Some(id);
                frames.push(Frame { kind: *kind, color, region, position, ..Frame::default() });
                pages.push(*page);
            }
        }
        let empty = Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() };
        frames.extend(std::iter::repeat_n(empty, free));
        // Equal contents, which a selector would find if it hashed free frames.
        pages.extend(std::iter::repeat_n(7, free));
        let layout = MemoryLayout::contiguous(u64::try_from(frames.len()).unwrap() << 12).unwrap();
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, all).unwrap();
        let written = vec![false; pages.len()];
        Self { locality: Arc::new(LocalityOrder::new(map)), pages, written }
    }

    fn content(&self, frame: FrameIndex) -> Content {
        match self.pages[frame.as_usize()] {
            0 => Content::Zero,
            page => Content::Page(Fingerprint(u128::from(page).to_le_bytes())),
        }
    }

    fn partial(&self, frame: FrameIndex) -> Content<PartialHash> {
        match self.pages[frame.as_usize()] {
            0 => Content::Zero,
            page => Content::Page(lines(page)),
        }
    }
}

/// The partial hash of a page: 2 of every 64 pages have the same one.
fn lines(page: u64) -> PartialHash {
    PartialHash(if page % 64 == 1 { page - 1 } else { page })
}

/// Page numbers that no other guest has.
fn unique(guest: u64, count: u64) -> Vec<u64> {
    (0..count).map(|n| (guest << 32) + (1 << 40) + n).collect()
}

type MakeSelector<'a> = &'a dyn Fn(&Guest, &Catalog, GuestNumber) -> Box<dyn DedupSelector>;

fn trial(guests: &[Guest], budget: u64, make: MakeSelector<'_>) -> (Trial, Vec<Vec<FrameIndex>>) {
    trial_of(guests, budget, make, false)
}

/// Runs a trial; returns it and the frames of each guest that were hashed in full.
fn trial_of(
    guests: &[Guest],
    budget: u64,
    make: MakeSelector<'_>,
    is_filtered: bool,
) -> (Trial, Vec<Vec<FrameIndex>>) {
    let mut catalog = Catalog::new();
    let numbers: Vec<_> = guests.iter().map(|guest| catalog.add(&guest.locality)).collect();
    let mut selectors: Vec<_> =
        guests.iter().zip(&numbers).map(|(guest, number)| make(guest, &catalog, *number)).collect();
    let written: Vec<_> =
        guests.iter().map(|g| |frame: FrameIndex| g.written[frame.as_usize()]).collect();
    let mut subjects: Vec<_> = guests
        .iter()
        .zip(&mut selectors)
        .zip(numbers.iter().zip(&written))
        .map(|((guest, selector), (number, is_written))| TrialGuest {
            number: *number,
            locality: &guest.locality,
            selector: selector.as_mut(),
            is_written,
        })
        .collect();
    let mut chosen = vec![Vec::new(); guests.len()];
    let read = |place: usize, frames: &[FrameIndex]| {
        chosen[place].extend_from_slice(frames);
        Ok::<_, Infallible>(frames.iter().map(|f| guests[place].content(*f)).collect())
    };
    let read_partial = |place: usize, frames: &[FrameIndex]| {
        Ok(frames.iter().map(|f| guests[place].partial(*f)).collect())
    };
    let trial = match is_filtered {
        true => run_filtered(&mut subjects, budget, read_partial, read).unwrap(),
        false => run(&mut subjects, budget, read).unwrap(),
    };
    (trial, chosen)
}

fn blind(guest: &Guest, _: &Catalog, _: GuestNumber) -> Box<dyn DedupSelector> {
    Box::new(Blind::new(Arc::clone(&guest.locality)))
}

fn adaptive(guest: &Guest, catalog: &Catalog, number: GuestNumber) -> Box<dyn DedupSelector> {
    Box::new(Adaptive::new(Arc::clone(&guest.locality), catalog, number, &HitRates::shipped()))
}

fn thorough(guest: &Guest, catalog: &Catalog, number: GuestNumber) -> Box<dyn DedupSelector> {
    let selector =
        Adaptive::new(Arc::clone(&guest.locality), catalog, number, &HitRates::shipped());
    Box::new(selector.with_least_worth(0.0))
}

/// Two guests: one equal library, one file of the same name with other contents, and private files
/// and memory.
fn pair() -> [Guest; 2] {
    [1, 2].map(|number| {
        let (inode, own) = (100 + number, format!("/srv/data-{number}"));
        Guest::new(
            &[
                (FrameKind::File, "ext4:1:12:/usr/lib/libc.so.6", (1..=200).collect()),
                (FrameKind::File, &format!("ext4:1:{inode}:/etc/config"), unique(number, 150)),
                (FrameKind::File, &format!("ext4:1:9:{own}"), unique(number + 10, 2000)),
                (FrameKind::Anonymous, "sh[7]", unique(number + 20, 1500)),
                (FrameKind::Slab, "dentry", unique(number + 30, 1000)),
                (
                    FrameKind::Kernel,
                    "kernel-text",
                    [unique(number + 40, 300), vec![999; 200]].concat(),
                ),
                (FrameKind::Anonymous, "zero[8]", vec![0; 50]),
            ],
            400,
        )
    })
}

#[test]
fn blind_finds_all_and_never_touches_free_or_zero_frames() {
    let guests = pair();
    let (trial, chosen) = trial(&guests, u64::MAX, &blind);
    let total = trial.total();
    // The library once, and all but one of the 400 equal pages of padding.
    assert_eq!((total.shared, total.within), (200 + 399, 398));
    assert_eq!((total.hashed, total.zero), (2 * (200 + 150 + 2000 + 1500 + 1000 + 500), 100));
    assert_eq!((total.diverged, total.net()), (0, 599));
    assert!(chosen.iter().flatten().all(|frame| frame.0 < 5400));
    assert_eq!(trial.sharing.bound(total.hashed), 599);
    // The 400 pages of padding, then pairs.
    assert_eq!(trial.sharing.bound(410), 399 + 5);
    let of_colors: u64 = trial.sharing.colors().map(|(_, tally)| tally.net()).sum();
    assert_eq!(of_colors, 599);
}

#[test]
fn adaptive_finds_nearly_all_with_few_hashes() {
    let guests = pair();
    let all = trial(&guests, u64::MAX, &blind).0.total();
    let found = trial(&guests, u64::MAX, &adaptive).0.total();
    assert!(found.net() * 100 >= all.net() * 95, "{found:?}");
    assert!(found.hashed * 4 <= all.hashed, "{found:?}");
    let budget = all.hashed / 20;
    let few = trial(&guests, budget, &adaptive).0.total();
    assert!(few.hashed <= budget && few.net() * 2 > all.net(), "{few:?}");
}

#[test]
fn adaptive_without_a_minimum_selects_every_frame_once() {
    let guests = pair();
    let (found, chosen) = trial(&guests, u64::MAX, &thorough);
    let (all, _) = trial(&guests, u64::MAX, &blind);
    assert_eq!(found.total(), all.total());
    for chosen in &chosen {
        let mut frames = chosen.clone();
        frames.sort();
        assert!(frames.windows(2).all(|two| two[0] < two[1]), "each frame once");
    }
    assert!(chosen == trial(&guests, u64::MAX, &thorough).1, "deterministic");
}

#[test]
fn filtering_saves_full_hashes_and_loses_nothing() {
    let guests = pair();
    let all = trial(&guests, u64::MAX, &blind).0.total();
    let (found, chosen) = trial_of(&guests, u64::MAX, &thorough, true);
    let total = found.total();
    assert_eq!((total.shared, total.within, total.zero), (all.shared, all.within, all.zero));
    assert_eq!(total.glanced, all.hashed);
    assert!(total.hashed * 3 < all.hashed, "{total:?}");
    // Pages that are equal to another one, or have the same partial hash.
    let all: Vec<_> = guests.iter().flat_map(|guest| &guest.pages[..5400]).collect();
    for (guest, chosen) in guests.iter().zip(&chosen) {
        for frame in chosen {
            let own = lines(guest.pages[frame.as_usize()]);
            assert!(all.iter().filter(|page| lines(***page) == own).count() > 1);
        }
    }
    // The padding is the largest group and comes first, then pairs.
    let few = trial_of(&guests, 400, &thorough, true).0.total();
    assert_eq!((few.hashed, few.shared), (400, 399));
}

#[test]
fn partial_hashes_are_computed_for_selected_frames_only() {
    let guests = pair();
    let all = trial(&guests, u64::MAX, &blind).0.total();
    let found = trial_of(&guests, u64::MAX, &adaptive, true).0.total();
    assert!(found.glanced * 4 <= all.hashed && found.net() * 100 >= all.net() * 95, "{found:?}");
}

#[test]
fn the_papers_sets_hold_their_colors() {
    let guests = pair();
    let kernel: MakeSelector<'_> =
        &|guest, _, _| Box::new(Paper::kernel_and_executable(Arc::clone(&guest.locality)));
    let cache: MakeSelector<'_> =
        &|guest, _, _| Box::new(Paper::cache_and_executable(Arc::clone(&guest.locality)));
    let colors = |make| {
        trial(&guests, u64::MAX, make).0.sharing.colors().map(|(c, _)| c).collect::<Vec<_>>()
    };
    assert_eq!(colors(kernel), [Color::KernelText, Color::Slab]);
    assert_eq!(colors(cache), [Color::KernelText, Color::FileCache]);
}

#[test]
fn written_pages_do_not_stay_saved() {
    let mut guests = pair();
    // One copy of the library's first page, both copies of its second page, and all but one page of
    // padding of one guest.
    guests[0].written[0] = true;
    guests[0].written[1] = true;
    guests[1].written[1] = true;
    for frame in 5150..5349 {
        guests[1].written[frame] = true;
    }
    let total = trial(&guests, u64::MAX, &blind).0.total();
    assert_eq!((total.shared, total.diverged), (599, 1 + 1 + 199));
}

#[test]
fn classes_that_diverge_are_avoided() {
    let guests = pair();
    let mut catalog = Catalog::new();
    let numbers: Vec<_> = guests.iter().map(|guest| catalog.add(&guest.locality)).collect();
    let judge = |frame: FrameIndex| match guests[0].content(frame) {
        Content::Page(_) => (if frame.0 < 200 { 2 } else { 1 }, frame.0 < 200),
        Content::Zero | Content::Missing => (0, false),
    };
    let taught = Adaptive::teach(&guests[0].locality, &catalog, numbers[0], judge);
    let shared =
        taught.iter().find(|(_, name_match, ..)| *name_match == NameMatch::SameFile).unwrap().3;
    assert_eq!((shared.hashed, shared.shared, shared.diverged), (200.0, 200.0, 200.0));
    let mut frames = Vec::new();
    let mut selector =
        Adaptive::new(Arc::clone(&guests[0].locality), &catalog, numbers[0], &taught);
    selector.select(10_000, &mut frames);
    assert!(!frames.iter().any(|frame| frame.0 < 200), "frames of a class that diverged");
}

#[test]
fn names_relate_guests_as_they_should() {
    let name_matches_of = |mine: &str, theirs: &str, pages: (u64, u64)| {
        let guest = |name, count| Guest::new(&[(FrameKind::File, name, unique(1, count))], 1);
        let guests = [guest(mine, pages.0), guest(theirs, pages.1)];
        let mut catalog = Catalog::new();
        let numbers: Vec<_> = guests.iter().map(|guest| catalog.add(&guest.locality)).collect();
        let taught = Adaptive::teach(&guests[0].locality, &catalog, numbers[0], |_| (1, false));
        let name_matches: HashMap<_, _> =
            taught.iter().map(|(_, name_match, _, found)| (name_match, found.hashed)).collect();
        name_matches
    };
    let only = |name_match, count: u32| HashMap::from([(name_match, f64::from(count))]);
    let same = name_matches_of("ext4:1:12:/bin/sh", "ext4:2:12:/bin/sh", (5, 5));
    assert_eq!(same, only(NameMatch::SameFile, 5), "the device number does not count");
    let like = name_matches_of("ext4:1:12:/bin/sh", "ext4:1:13:/bin/sh", (5, 5));
    assert_eq!(like, only(NameMatch::LikeFile, 5));
    let other = name_matches_of("ext4:1:12:/bin/sh", "ext4:1:13:/bin/sh", (5, 4));
    assert_eq!(other[&NameMatch::OtherFile], 4.0);
    assert_eq!(other[&NameMatch::Namesake], 1.0, "a page that the other guest lacks");
    assert_eq!(name_matches_of("ext4:1:12:/a", "ext4:1:12:/b", (5, 5)), only(NameMatch::None, 5));
    assert_eq!(name_matches_of("ext4:1:12:", "ext4:1:12:", (5, 5)), only(NameMatch::None, 5));
}

#[test]
fn build_ids_outrank_inodes_and_sizes() {
    let name_matches_of = |inodes: (u64, u64), pages: (u64, u64), ids: (&[u8], &[u8])| {
        let add = |catalog: &mut Catalog, inode: u64, count: u64, id: &[u8]| {
            let name = format!("ext4:1:{inode}:/usr/lib/libc.so.6");
            // A file before it, so that its region is not number 0.
            let own = (FrameKind::File, "ext4:1:3:/srv/own", vec![1]);
            let guest = Guest::new(&[own, (FrameKind::File, &name, unique(1, count))], 1);
            let known = [(1, id)];
            let ids = BuildIds::of(if id.is_empty() { &[] } else { &known });
            (catalog.add_with(&guest.locality, &ids), guest)
        };
        let mut catalog = Catalog::new();
        let (number, guest) = add(&mut catalog, inodes.0, pages.0, ids.0);
        add(&mut catalog, inodes.1, pages.1, ids.1);
        let taught = Adaptive::teach(&guest.locality, &catalog, number, |frame| {
            (u32::from(frame.0 > 0), false)
        });
        let found: HashMap<_, _> = taught
            .iter()
            .filter(|(.., found)| found.hashed > 0.0)
            .map(|(_, name_match, _, found)| (name_match, found.hashed))
            .collect();
        found
    };
    let only = |name_match| HashMap::from([(name_match, 5.0)]);
    let (same, other) = ((12, 12), (12, 13));
    assert_eq!(name_matches_of(other, (5, 5), (b"a", b"a")), only(NameMatch::SameFile));
    assert_eq!(name_matches_of(same, (5, 5), (b"a", b"a")), only(NameMatch::SameFile));
    assert_eq!(name_matches_of(same, (5, 5), (b"a", b"b")), only(NameMatch::OtherFile));
    assert_eq!(name_matches_of(other, (5, 5), (b"a", b"b")), only(NameMatch::OtherFile));
    // The other guest has fewer pages; pages are matched one by one.
    let less = name_matches_of(other, (5, 3), (b"a", b"a"));
    assert_eq!((less[&NameMatch::SameFile], less[&NameMatch::Namesake]), (3.0, 2.0));
    // Ids are compared only if both files have one.
    for ids in [(&b"a"[..], &b""[..]), (b"", b"a"), (b"", b"")] {
        assert_eq!(name_matches_of(same, (5, 5), ids), only(NameMatch::SameFile));
        assert_eq!(name_matches_of(other, (5, 5), ids), only(NameMatch::LikeFile));
        assert_eq!(name_matches_of(other, (5, 6), ids), only(NameMatch::OtherFile));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any guests and any budget: no frame is selected twice, no free frame is selected, no
    /// more than `budget` frames are hashed, and the counts agree with a naive count.
    #[test]
    fn trials_are_sound(
        held in prop::collection::vec(
            prop::collection::vec(
                (0usize..4, 0usize..3, prop::collection::vec(0u64..12, 0..90)),
                1..6,
            ),
            1..4,
        ),
        budget in prop_oneof![0u64..300, Just(u64::MAX)],
        (is_blind, is_filtered) in any::<(bool, bool)>(),
    ) {
        let kinds = [FrameKind::File, FrameKind::Kernel, FrameKind::Slab, FrameKind::Anonymous];
        let names = ["ext4:1:2:/usr/a", "ext4:1:3:/opt/a", "x[3]"];
        let guests: Vec<_> = held
            .iter()
            .map(|regions| {
                let of = |(kind, name, pages): &(usize, usize, Vec<u64>)| {
                    (kinds[*kind], names[*name], pages.clone())
                };
                Guest::new(&regions.iter().map(of).collect::<Vec<_>>(), 3)
            })
            .collect();
        let make: MakeSelector<'_> = if is_blind { &blind } else { &thorough };
        let (trial, chosen) = trial_of(&guests, budget, make, is_filtered);
        let total = trial.total();
        prop_assert!(total.hashed <= budget);
        let mut copies: HashMap<u64, u64> = HashMap::new();
        let mut zero = 0;
        for (guest, chosen) in guests.iter().zip(&chosen) {
            let mut seen = std::collections::HashSet::new();
            for frame in chosen {
                prop_assert!(seen.insert(*frame) && !guest.locality.is_free(*frame));
                match guest.pages[frame.as_usize()] {
                    0 => zero += 1,
                    page => *copies.entry(page).or_default() += 1,
                }
            }
        }
        if !is_filtered {
            prop_assert_eq!(total.zero, zero);
        }
        prop_assert_eq!(total.hashed, copies.values().sum::<u64>());
        prop_assert_eq!(total.shared, copies.values().map(|n| n - 1).sum::<u64>());
        prop_assert!(total.net() <= trial.sharing.bound(total.hashed));
        if budget == u64::MAX {
            let nonzero = |guest: &Guest| guest.pages.iter().filter(|page| **page != 0).count();
            let candidates: usize = guests.iter().map(|guest| nonzero(guest) - 3).sum();
            let candidates = u64::try_from(candidates).unwrap();
            let read = if is_filtered { total.glanced } else { total.hashed };
            prop_assert_eq!(read, candidates);
            let mut all: HashMap<u64, u64> = HashMap::new();
            for page in guests.iter().flat_map(|g| &g.pages[..g.pages.len() - 3]) {
                *all.entry(*page).or_default() += u64::from(*page != 0);
            }
            let shared: u64 = all.values().map(|n| n.saturating_sub(1)).sum();
            prop_assert_eq!(total.shared, shared, "a filter loses nothing");
        }
    }
}
