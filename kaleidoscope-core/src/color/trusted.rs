//! Whether the free frames of a map's snapshot may be filled with zeros, and how that is known.

use crate::memory::SnapshotId;

/// What a map records of its free frames. Two records are equal if a file holds the same of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FreeFrameTrust {
    /// The map's coloring found that they may be filled with zeros. A file says no more.
    is_claimed: bool,
    /// This process knows it, of one snapshot.
    of: Option<Snapshot>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Snapshot {
    Known(SnapshotId),
    WithoutId,
}

impl FreeFrameTrust {
    /// What a file says, which says nothing of any snapshot before the two were compared.
    pub(crate) fn claimed(is_claimed: bool) -> Self {
        Self { is_claimed, of: None }
    }

    /// What this process found out of a snapshot.
    pub(crate) fn established(snapshot: Option<SnapshotId>) -> Self {
        Self { is_claimed: true, of: Some(snapshot.into()) }
    }

    /// The snapshot is the one that the map was made from: the claim holds of it, if there is one.
    pub(crate) fn verified(self, snapshot: Option<SnapshotId>) -> Self {
        Self { of: self.is_claimed.then(|| snapshot.into()), ..self }
    }

    /// What a clone descriptor decides for the snapshot that it names, whatever the claim.
    #[cfg(feature = "engine")]
    pub(crate) fn decided(self, snapshot: Option<SnapshotId>) -> Self {
        Self { of: snapshot.map(Snapshot::Known), ..self }
    }

    pub(crate) fn is_claimed(self) -> bool {
        self.is_claimed
    }

    pub(super) fn is_established(self) -> bool {
        self.of.is_some()
    }

    pub(super) fn is_of(self, snapshot: SnapshotId) -> bool {
        self.of == Some(Snapshot::Known(snapshot))
    }
}

impl From<Option<SnapshotId>> for Snapshot {
    fn from(id: Option<SnapshotId>) -> Self {
        id.map_or(Self::WithoutId, Self::Known)
    }
}

impl PartialEq for FreeFrameTrust {
    fn eq(&self, other: &Self) -> bool {
        self.is_claimed == other.is_claimed
    }
}

impl Eq for FreeFrameTrust {}
