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
struct Trace {
    spec: PagingSpec,
    root: Gpa,
    image: ImageSpan,
    release: String,
}

impl Trace {
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
    trace: Trace,
    refuted: Option<String>,
    /// The reason why it no longer runs, if it recorded one.
    death: Option<&'static str>,
}

impl Candidate<'_> {
    fn verdict(&self) -> Verdict {
        match (&self.refuted, self.death) {
            (Some(_), _) => Verdict::Refuted,
            (None, Some(_)) => Verdict::Dead,
            (None, None) => Verdict::Whole,
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
    let mut traces: Vec<Trace> = located.iter().map(Trace::of).collect();
    let pages: Vec<Vec<Gpa>> =
        traces.iter().map(|t| tables_to_image(memory, &t.spec, t.root, t.image.gva)).collect();
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
        let Some(trace) = traces.get_mut(number) else { continue };
        if trace.release.is_empty() {
            trace.release = kernel.identity().release;
        }
        let (refuted, death) = (liveness.refutation(), liveness.death);
        candidates.push(Candidate { kernel, notes: own, trace: trace.clone(), refuted, death });
    }
    if let (true, Some(error)) = (candidates.is_empty(), first_error) {
        return Err(error);
    }
    let verdicts: Vec<Verdict> = candidates.iter().map(Candidate::verdict).collect();
    let winner = match possible(&verdicts)[..] {
        [winner] => winner,
        ref several => return Err(ambiguous(&candidates, several, &traces).into()),
    };
    let winner = candidates.swap_remove(winner);
    for other in traces.iter().filter(|t| t.root != winner.trace.root) {
        let lost = candidates.iter().find(|c| c.trace.root == other.root);
        let why = match lost {
            Some(Candidate { refuted: Some(why), .. }) => why.as_str(),
            Some(Candidate { death: Some(death), .. }) => death,
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
    Whole,
    /// The structures are consistent, but the kernel recorded a crash or a shutdown.
    Dead,
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
    let whole = all(Verdict::Whole);
    if whole.is_empty() { all(Verdict::Dead) } else { whole }
}

/// Names two kernels that cannot be told apart: among the possible candidates, or else among all.
fn ambiguous(candidates: &[Candidate<'_>], alive: &[usize], traces: &[Trace]) -> LocateError {
    let possible: Vec<&Trace> = if alive.len() > 1 {
        alive.iter().filter_map(|&n| candidates.get(n)).map(|c| &c.trace).collect()
    } else {
        traces.iter().collect()
    };
    let name = |n: usize| possible.get(n).map(|t: &&Trace| t.name()).unwrap_or_default();
    LocateError::Ambiguous { count: possible.len(), first: name(0), second: name(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_stands_alone_is_believed() {
        use Verdict::{Dead, Refuted, Whole};
        for (verdicts, expected) in [
            (&[Refuted, Whole][..], &[1][..]),
            (&[Dead, Whole, Refuted], &[1]),
            // An image may show the crash itself.
            (&[Dead, Refuted], &[0]),
            (&[Whole, Whole], &[0, 1]),
            (&[Dead, Dead], &[0, 1]),
            (&[Refuted, Refuted], &[]),
        ] {
            assert_eq!(possible(verdicts), expected, "{verdicts:?}");
        }
    }
}
