//! Keeps QEMU from asking for huge pages.
//!
//! QEMU advises the kernel to use huge pages for a guest's RAM, and has no option against it. With
//! this advice a page fault reads 2 MiB of a file around the page, even if readahead is off (Linux
//! `mm/filemap.c`, `do_sync_mmap_readahead`), so that touches could not be told apart. A system
//! call filter fails this advice, and no other call, with an error that QEMU ignores.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::lab::error::{Error, Result};

/// Refuses `madvise(MADV_HUGEPAGE)` to this thread and to all threads and processes that it starts
/// from now on. The filter cannot be removed.
///
/// # Errors
/// If the kernel has no system call filters.
pub(crate) fn refuse() -> Result<()> {
    let failed = |error: seccompiler::Error| {
        Error::Trace(format!("cannot keep QEMU from using huge pages: {error}"))
    };
    let program = filter().map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(failed)
}

fn filter() -> seccompiler::Result<BpfProgram> {
    const ADVICE: u8 = 2;
    let errno = u32::try_from(libc::EINVAL).unwrap_or_default();
    let huge = u64::try_from(libc::MADV_HUGEPAGE).unwrap_or_default();
    let is_huge = SeccompCondition::new(ADVICE, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, huge)?;
    let rules = BTreeMap::from([(libc::SYS_madvise, vec![SeccompRule::new(vec![is_huge])?])]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::agent::os::{Advice, Backing, HUGE_PAGE, Mapping};

    fn advise(advice: Advice) -> std::io::Result<()> {
        let memory = Mapping::anonymous(HUGE_PAGE, Backing::Private)?;
        memory.advise(0, HUGE_PAGE, advice)
    }

    #[test]
    fn only_huge_pages_are_refused_and_only_here() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                advise(Advice::Huge).unwrap();
                refuse().unwrap();
                assert!(advise(Advice::Huge).is_err());
                advise(Advice::Random).unwrap();
            });
        });
        advise(Advice::Huge).unwrap();
    }
}
