//! Tables with one entry per frame, allocated on first use.

use std::fmt;
use std::sync::OnceLock;

/// Entries per chunk: the frames of 16 MiB. Loom recreates all entries for each interleaving, so it
/// uses small chunks.
const CHUNK: usize = if cfg!(loom) { 4 } else { 4096 };

/// A table whose entries are created when they are first looked up, one chunk at a time.
///
/// Creating a table is cheap, and its memory grows with the frames touched, however many entries it
/// has. A zeroed allocation would do the same only once: from the second large block on, allocators
/// return used memory, which they must clear.
pub struct LazyTable<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
    len: usize,
}

impl<T: Default> LazyTable<T> {
    /// A table of `len` entries, all of them not yet created.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let chunks = (0..len.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        let table = Self { chunks, len };
        if cfg!(loom) {
            // Loom does not model `OnceLock`, so under loom all entries are created up front.
            for at in 0..len {
                let _ = table.get(at);
            }
        }
        table
    }

    /// Number of entries, created or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An entry, created if necessary; `None` past the end.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&T> {
        if at >= self.len {
            return None;
        }
        let chunk = self.chunks.get(at / CHUNK)?;
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        chunk.get(at % CHUNK)
    }

    /// An entry for writing, created if necessary; `None` past the end.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        if at >= self.len {
            return None;
        }
        let chunk = self.chunks.get_mut(at / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        chunk.get_mut()?.get_mut(at % CHUNK)
    }

    /// An entry if it has been created; `None` if not, or past the end.
    #[must_use]
    pub fn made(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / CHUNK)?.get()?.get(at % CHUNK).filter(|_| at < self.len)
    }
}

impl<T> fmt::Debug for LazyTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyTable").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    #[test]
    fn entries_are_made_when_they_are_looked_up() {
        let table: LazyTable<AtomicU8> = LazyTable::new(10_000);
        assert_eq!((table.len(), table.is_empty()), (10_000, false));
        assert!(table.made(9_999).is_none());
        table.get(9_999).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(table.made(9_999).unwrap().load(Ordering::Relaxed), 7);
        assert_eq!(table.made(8_192).unwrap().load(Ordering::Relaxed), 0, "in the same chunk");
        assert!(table.made(8_191).is_none(), "in another chunk");
        assert!(table.get(10_000).is_none() && table.made(10_000).is_none());
        assert!(LazyTable::<AtomicU8>::new(0).get(0).is_none());
        let mut table: LazyTable<u32> = LazyTable::new(5000);
        *table.get_mut(4097).unwrap() = 3;
        assert_eq!([4095, 4096, 4097].map(|at| table.made(at).copied()), [None, Some(0), Some(3)]);
        assert!(table.get_mut(5000).is_none());
    }

    #[test]
    fn threads_agree_on_entries() {
        let table: LazyTable<AtomicU8> = LazyTable::new(100_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..table.len() {
                        table.get(at).unwrap().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!((0..table.len()).all(|at| table.get(at).unwrap().load(Ordering::Relaxed) == 4));
    }
}
