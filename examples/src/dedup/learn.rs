//! Learns hit rates from pairs of guests: the savings of every class of frames if all are hashed.

use super::guests::Guest;
use crate::failure::Failure;
use crate::outfile::Output;
use crate::progress::Bar;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::dedup::{Adaptive, BuildIds, Catalog, HitRates, SharingStatistics};
use kaleidoscope_core::fingerprint::{Content, Domain, Fingerprints, contents};
use std::num::NonZeroUsize;

/// A guest with its fingerprints and build ids.
struct FingerprintedGuest<'a> {
    guest: &'a Guest,
    pages: Fingerprints,
    ids: BuildIds,
}

/// Learns hit rates from every pair of guests, and writes them.
///
/// # Errors
/// If there are fewer than two guests, an image cannot be read, or the file cannot be written.
pub(super) fn write(output: Output, guests: &[Guest]) -> Result<(), Failure> {
    if guests.len() < 2 {
        return Err(Failure::new("cannot learn from one guest").hint("give two images or more"));
    }
    let fingerprinted: Result<Vec<_>, Failure> = guests
        .iter()
        .map(|guest| {
            Ok(FingerprintedGuest { guest, pages: fingerprints(guest)?, ids: guest.build_ids()? })
        })
        .collect();
    let fingerprinted = fingerprinted?;
    let mut all = HitRates::default();
    let pairs = guests.len() * (guests.len() - 1) / 2;
    let bar = Bar::new("pairs", pairs);
    for (at, one) in fingerprinted.iter().enumerate() {
        for other in fingerprinted.iter().skip(at + 1) {
            all.merge(&pair([one, other]));
            bar.advance();
        }
    }
    bar.finish();
    output.write(|out| out.write_all(all.to_text().as_bytes()))
}

fn fingerprints(guest: &Guest) -> Result<Fingerprints, Failure> {
    // Any key will do, because the fingerprints never leave this process.
    let domain = Domain::new([0; 32]);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let frames: Vec<_> = (0..guest.locality.frames())
        .map(FrameIndex)
        .filter(|f| !guest.locality.is_free(*f))
        .collect();
    let found: Vec<Content> = contents(&guest.image, &frames, &domain, threads)
        .map_err(|e| Failure::new(format_args!("{}: {e}", guest.name)))?;
    Ok(Fingerprints::new(domain.id(), guest.locality.frames(), frames.into_iter().zip(found)))
}

fn pair(both: [&FingerprintedGuest<'_>; 2]) -> HitRates {
    let mut catalog = Catalog::new();
    let numbers = both
        .map(|fingerprinted| catalog.add_with(&fingerprinted.guest.locality, &fingerprinted.ids));
    let mut sharing = SharingStatistics::new();
    for (FingerprintedGuest { guest, pages, .. }, number) in both.into_iter().zip(numbers) {
        for (frame, page) in pages.iter() {
            sharing.add(
                (number, frame),
                guest.locality.color(frame),
                page,
                guest.is_written(frame),
            );
        }
    }
    let mut hit_rates = HitRates::default();
    for (FingerprintedGuest { guest, pages, .. }, number) in both.into_iter().zip(numbers) {
        let judge = |frame| {
            let copies = pages.get(frame).map_or(0, |page| sharing.copies(page));
            (copies, guest.is_written(frame))
        };
        hit_rates.merge(&Adaptive::teach(&guest.locality, &catalog, number, judge));
    }
    hit_rates
}
