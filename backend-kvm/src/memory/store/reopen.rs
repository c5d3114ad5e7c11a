//! What a store finds in the file of its former life.

use super::file::StoreFile;
use crate::error::KvmError;
use crate::memory::runs;
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::Domain;
use kaleidoscope_core::store::Index;

/// The index of what is in the file: pages of these domains are taken over, every other place that
/// was in use is reserved.
pub(super) fn index(file: &StoreFile, domains: &[Domain]) -> Result<Index, KvmError> {
    let mut index = Index::new(file.pages());
    // The one that fitted last is tried first: pages of one tenant come together.
    let mut domains: Vec<&Domain> = domains.iter().collect();
    let keys = file.keys()?;
    let mut page = [0; FRAME_BYTES];
    for (slot, key) in &keys {
        file.read(*slot, &mut page)?;
        let owner = domains.iter().position(|domain| domain.fingerprint(&page) == *key);
        let is_adopted = owner.is_some_and(|owner| {
            domains.swap(0, owner);
            // A page may be there twice: a store that did not have its domain was given it again.
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
