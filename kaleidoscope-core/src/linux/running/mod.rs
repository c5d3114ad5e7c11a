//! Selects the running kernel among several in one memory.
//!
//! Each candidate is opened and its structures are read ([`LivenessEvidence`]). The structures of a
//! running kernel are consistent: its frame table does not give away its own pages, its lists are
//! closed, its objects point back at each other, and its processes' page tables are typed as such.
//! A former kernel has lost whatever the running kernel has overwritten. A kernel that crashed or
//! was shut down has recorded this. If exactly one candidate passes, it is the running kernel; if
//! none or several pass, no candidate is accepted.

mod liveness;

use self::liveness::LivenessEvidence;
use super::common_symbols::CommonSymbols;
use super::introspect::LinuxError;
use super::kernel::Kernel;
use super::locate::{ImageSpan, LocateError, Located, tables_to_image};
use crate::addr::Gpa;
use crate::guest_os::{Note, Phase};
use crate::memory::GuestMemory;
use crate::paging::{PagingSpec, TableBudget};

/// Identity of a candidate, kept even if the candidate cannot be opened.
#[derive(Clone, Debug)]
struct CandidateInfo {
    spec: PagingSpec,
    root: Gpa,
    image: ImageSpan,
    release: String,
}

impl CandidateInfo {
    fn of(located: &Located) -> Self {
        let note = located.note.as_ref();
        Self {
            spec: located.spec,
            root: located.root,
            image: located.image,
            release: note.map(|n| n.os_release().to_owned()).unwrap_or_default(),
        }
    }

    /// The kernel's name for display.
    fn name(&self) -> String {
        let release = if self.release.is_empty() { "a kernel" } else { &self.release };
        format!("{release} with root table {}", self.root)
    }
}

/// An opened candidate, and why it is not the running kernel, if so.
struct Candidate<'m> {
    kernel: Kernel<'m>,
    notes: Vec<Note>,
    info: CandidateInfo,
    refuted: Option<String>,
    /// The reason why it no longer runs, if it recorded one.
    stop_reason: Option<&'static str>,
}

impl Candidate<'_> {
    fn verdict(&self) -> Verdict {
        match (&self.refuted, self.stop_reason) {
            (Some(_), _) => Verdict::Refuted,
            (None, Some(_)) => Verdict::Stopped,
            (None, None) => Verdict::Consistent,
        }
    }
}

/// Selects the running kernel.
///
/// # Errors
/// [`LocateError::Ambiguous`] unless exactly one candidate can be the running kernel.
pub(super) fn choose<'m>(
    memory: &'m dyn GuestMemory,
    located: Vec<Located>,
    common: &CommonSymbols,
    budget: &mut TableBudget,
    begin: &mut dyn FnMut(Phase),
    notes: &mut Vec<Note>,
) -> Result<Kernel<'m>, LinuxError> {
    let mut infos: Vec<CandidateInfo> = located.iter().map(CandidateInfo::of).collect();
    let pages: Vec<Vec<Gpa>> =
        infos.iter().map(|t| tables_to_image(memory, &t.spec, t.root, t.image.gva)).collect();
    let mut candidates = Vec::new();
    let mut first_error = None;
    for (number, located) in located.into_iter().enumerate() {
        let mut own = Vec::new();
        let opened = Kernel::open_one(memory, located, common, budget, begin, &mut own);
        let kernel = match opened {
            Ok(kernel) => kernel,
            Err(error) => {
                first_error.get_or_insert(error);
                continue;
            }
        };
        let rivals = pages.iter().enumerate().filter(|(other, _)| *other != number);
        let rivals: Vec<Gpa> = rivals.flat_map(|(_, pages)| pages).copied().collect();
        let liveness = LivenessEvidence::read(&kernel, &rivals, budget);
        let Some(info) = infos.get_mut(number) else { continue };
        if info.release.is_empty() {
            info.release = kernel.identity().release;
        }
        let (refuted, stop_reason) = (liveness.refutation(), liveness.stop_reason);
        candidates.push(Candidate { kernel, notes: own, info: info.clone(), refuted, stop_reason });
    }
    if let (true, Some(error)) = (candidates.is_empty(), first_error) {
        return Err(error);
    }
    let verdicts: Vec<Verdict> = candidates.iter().map(Candidate::verdict).collect();
    let winner = match possible(&verdicts)[..] {
        [winner] => winner,
        ref several => return Err(ambiguous(&candidates, several, &infos).into()),
    };
    let winner = candidates.swap_remove(winner);
    for other in infos.iter().filter(|t| t.root != winner.info.root) {
        let lost = candidates.iter().find(|c| c.info.root == other.root);
        let why = match lost {
            Some(Candidate { refuted: Some(why), .. }) => why.as_str(),
            Some(Candidate { stop_reason: Some(stop_reason), .. }) => stop_reason,
            Some(_) | None => "its structures cannot be read",
        };
        let text = format!("the memory also holds {}, which does not run: {why}", other.name());
        notes.push(Note::contradiction("former kernel", text));
    }
    notes.extend(winner.notes);
    Ok(winner.kernel)
}

/// Conclusion from a candidate's liveness evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// The structures are consistent.
    Consistent,
    /// The structures are consistent, but the kernel recorded a crash or a shutdown.
    Stopped,
    /// The structures contradict each other.
    Refuted,
}

/// The candidates that may be the running kernel: the consistent ones, or else the stopped ones,
/// since an image may document a crash.
fn possible(verdicts: &[Verdict]) -> Vec<usize> {
    let all = |wanted: Verdict| -> Vec<usize> {
        let numbered = verdicts.iter().enumerate();
        numbered.filter(|(_, v)| **v == wanted).map(|(n, _)| n).collect()
    };
    let consistent = all(Verdict::Consistent);
    if consistent.is_empty() { all(Verdict::Stopped) } else { consistent }
}

/// Names two kernels that cannot be told apart: among the possible candidates, or else among all.
fn ambiguous(
    candidates: &[Candidate<'_>],
    alive: &[usize],
    infos: &[CandidateInfo],
) -> LocateError {
    let possible: Vec<&CandidateInfo> = if alive.len() > 1 {
        alive.iter().filter_map(|&n| candidates.get(n)).map(|c| &c.info).collect()
    } else {
        infos.iter().collect()
    };
    let name = |n: usize| possible.get(n).map(|t: &&CandidateInfo| t.name()).unwrap_or_default();
    LocateError::Ambiguous { count: possible.len(), first: name(0), second: name(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_stands_alone_is_believed() {
        use Verdict::{Consistent, Refuted, Stopped};
        for (verdicts, expected) in [
            (&[Refuted, Consistent][..], &[1][..]),
            (&[Stopped, Consistent, Refuted], &[1]),
            // An image may show the crash itself.
            (&[Stopped, Refuted], &[0]),
            (&[Consistent, Consistent], &[0, 1]),
            (&[Stopped, Stopped], &[0, 1]),
            (&[Refuted, Refuted], &[]),
        ] {
            assert_eq!(possible(verdicts), expected, "{verdicts:?}");
        }
    }
}
