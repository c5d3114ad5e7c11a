//! What predicts a clone's writes: not colors, but the lists of free frames.
//!
//! A clone that shares its parent's memory waits when it writes. Frames that it will write could be
//! copied ahead, which pays for a frame that is written more often than not. This prints how many
//! frames colors and temperature select on the guests of `KALEIDOSCOPE_GUESTS`, each judged by the
//! writes of the other guests' clones (see `guests`), and how many of the allocated frames are
//! copied ahead by following the free lists. It checks the claims about both in ARCHITECTURE.md.

use crate::guests::{Guest, guests};
use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::color::Temperature;
use kaleidoscope_core::prefetch::{AllocationForecast, Class, FreeOrder};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The known properties of a frame before its use.
type Signs = (Class, u8);

/// Frames that each of a guest's clones wrote, in the order of first write.
fn writes_in_order(guest: &Guest) -> BTreeMap<&str, Vec<FrameIndex>> {
    let root = std::env::var_os("KALEIDOSCOPE_GUESTS").unwrap();
    let folder = Path::new(&root).join(&guest.name).join("traces");
    let of_trace = |name: &str| {
        let text = fs::read_to_string(folder.join(format!("{name}.csv"))).unwrap();
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().unwrap().split(',').collect();
        let column = |name: &str| columns.iter().position(|column| *column == name);
        let [gfn, event, access] = ["gfn", "event", "access_write"].map(|c| column(c).unwrap());
        let written = column("written");
        let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
        for fields in lines.map(|line| line.split(',').collect::<Vec<_>>()) {
            // A page is written at its first touch, later, or before the end.
            let is_written = fields[access] == "1"
                || fields[event] == "firstwrite"
                || written.is_some_and(|column| fields[column] == "1");
            if is_written {
                let gfn = Gfn(u64::from_str_radix(fields[gfn], 16).unwrap());
                let frame = guest.locality.layout().index_of(gfn);
                found.extend(frame.filter(|frame| seen.insert(*frame)));
            }
        }
        found
    };
    guest.traces.keys().map(|name| (name.as_str(), of_trace(name))).collect()
}

/// Frames that each of a guest's clones wrote.
fn writes(guest: &Guest) -> BTreeMap<&str, BTreeSet<FrameIndex>> {
    let sets = writes_in_order(guest).into_iter();
    sets.map(|(trace, frames)| (trace, frames.into_iter().collect())).collect()
}

fn frames(guest: &Guest) -> impl Iterator<Item = FrameIndex> {
    (0..guest.locality.frames()).map(FrameIndex)
}

fn signs(guest: &Guest, frame: FrameIndex) -> Signs {
    let temperature = guest.locality.map().temperatures().get(frame.as_usize());
    (guest.locality.class(frame), temperature.copied().unwrap_or(Temperature::NONE).bits())
}

#[test]
fn colors_do_not_say_what_will_be_written() {
    let guests = guests();
    if guests.len() < 2 {
        return;
    }
    let written: Vec<_> = guests.iter().map(writes).collect();
    println!(
        "| guest | clones | frames that one writes | free ones of them | worth copying by color \
         | written | of all writes |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (judged, guest) in guests.iter().enumerate() {
        // Frames that clones of the other guests had and wrote, per combination of hints: sums over
        // the clones.
        let (mut had, mut wrote) = (BTreeMap::<Signs, f64>::new(), BTreeMap::<Signs, f64>::new());
        for (n, other) in guests.iter().enumerate().filter(|(n, _)| *n != judged) {
            let clones = written[n].len() as f64;
            frames(other).for_each(|frame| *had.entry(signs(other, frame)).or_default() += clones);
            for frame in written[n].values().flatten() {
                *wrote.entry(signs(other, *frame)).or_default() += 1.0;
            }
        }
        let is_worth = |signs: &Signs| {
            let of = |counts: &BTreeMap<Signs, f64>| counts.get(signs).copied().unwrap_or(0.0);
            of(&wrote) > of(&had) / 2.0
        };
        let worth: BTreeSet<_> =
            frames(guest).filter(|frame| is_worth(&signs(guest, *frame))).collect();
        let clones = written[judged].len() as f64;
        let mean = |of: &dyn Fn(&BTreeSet<FrameIndex>) -> usize| {
            written[judged].values().map(|frames| of(frames) as f64).sum::<f64>() / clones
        };
        let all = mean(&|frames| frames.len());
        let free = mean(&|frames| frames.iter().filter(|f| guest.locality.is_free(**f)).count());
        let hit = mean(&|frames| frames.intersection(&worth).count());
        let (accuracy, coverage) = (hit / worth.len().max(1) as f64, hit / all);
        println!(
            "| {} | {clones} | {all:.0} | {free:.0} | {} | {:.0} % | {:.1} % |",
            guest.name,
            worth.len(),
            100.0 * accuracy,
            100.0 * coverage
        );
        assert!(free > all / 4.0, "{}: much of what clones write was free", guest.name);
        assert!(
            accuracy < 0.5 || coverage < 0.05,
            "{}: colors predict more writes than they did; copying ahead by them may pay off now",
            guest.name
        );
    }
}

/// How well a forecast followed a clone through its free frames.
#[derive(Clone, Copy, Default)]
struct Followed {
    written: usize,
    free: usize,
    copied: usize,
    /// Copied frames that were written after they were copied.
    used: usize,
}

impl Followed {
    fn accuracy(&self) -> f64 {
        self.used as f64 / self.copied.max(1) as f64
    }

    fn of_free(&self) -> f64 {
        self.used as f64 / self.free.max(1) as f64
    }

    fn of_all(&self) -> f64 {
        self.used as f64 / self.written.max(1) as f64
    }

    fn add(&mut self, other: Self) {
        self.written += other.written;
        self.free += other.free;
        self.copied += other.copied;
        self.used += other.used;
    }

    fn print(&self, guest: &str, trace: &str, looks: usize) {
        let Self { written, free, copied, .. } = self;
        let [accuracy, of_free, of_all] =
            [self.accuracy(), self.of_free(), self.of_all()].map(|share| 100.0 * share);
        println!(
            "| {guest} | {trace} | {looks} | {written} | {free} | {copied} \
             | {accuracy:.1} % | {of_free:.1} % | {of_all:.1} % |"
        );
    }
}

/// Lets a forecast follow a clone, with one look after every `looks` writes.
fn follow(guest: &Guest, order: &Arc<FreeOrder>, writes: &[FrameIndex], looks: usize) -> Followed {
    let mut forecast = AllocationForecast::new(Arc::clone(order));
    let (mut copied, mut written) = (BTreeSet::new(), BTreeSet::new());
    let mut found = Followed { written: writes.len(), ..Followed::default() };
    for (number, frame) in (1..).zip(writes) {
        found.free += usize::from(guest.locality.is_free(*frame));
        found.used += usize::from(copied.contains(frame));
        written.insert(*frame);
        if number % looks == 0 {
            let ahead = forecast.advance(|frame| written.contains(&frame));
            copied.extend(ahead.into_iter().flatten().map(FrameIndex));
        }
    }
    found.copied = copied.len();
    found
}

#[test]
fn allocation_lists_say_what_will_be_written() {
    println!(
        "| guest | clone | writes between looks | frames written | free ones \
         | copied ahead | written then | of the free ones | of all |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for guest in guests() {
        let order = Arc::new(FreeOrder::new(&guest.locality));
        let traces = writes_in_order(&guest);
        for looks in [1, 16, 64] {
            let mut sum = Followed::default();
            for (trace, writes) in &traces {
                let followed = follow(&guest, &order, writes, looks);
                followed.print(&guest.name, trace, looks);
                sum.add(followed);
            }
            sum.print(&guest.name, "all", looks);
            if looks == 1 {
                assert!(sum.accuracy() > 0.9, "{}: {}", guest.name, sum.accuracy());
                assert!(sum.of_free() > 0.8, "{}: {}", guest.name, sum.of_free());
            }
        }
    }
}
