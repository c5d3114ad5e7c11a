//! Rebuilding a store's index from the file of a previous process.

use super::file::StoreFile;
use crate::error::Error;
use crate::memory::runs;
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::Domain;
use kaleidoscope_core::store::Index;

/// Builds the index of a file: pages of these domains are adopted, and every other slot that was in
/// use is reserved.
pub(super) fn index(file: &StoreFile, domains: &[Domain]) -> Result<Index, Error> {
    let mut index = Index::new(file.pages());
    // The domain that matched last is tried first, since pages of one tenant are mostly adjacent.
    let mut domains: Vec<&Domain> = domains.iter().collect();
    let keys = file.keys()?;
    let mut page = [0; FRAME_BYTES];
    for (slot, key) in &keys {
        file.read(*slot, &mut page)?;
        let owner = domains.iter().position(|domain| domain.fingerprint(&page) == *key);
        let is_adopted = owner.is_some_and(|owner| {
            domains.swap(0, owner);
            // A page can occur twice: a store without the page's domain may have stored it again.
            index.adopt(*key, *slot)
        });
        if !is_adopted {
            index.reserve(*slot);
        }
    }
    let known = runs::normal(keys.iter().map(|(slot, _)| *slot..*slot + 1).collect());
    for slot in runs::without(&file.written()?, &known).into_iter().flatten() {
        index.reserve(slot);
    }
    Ok(index)
}
