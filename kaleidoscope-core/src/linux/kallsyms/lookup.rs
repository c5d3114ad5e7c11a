//! Finds many names in one pass over the compressed stream, without expanding it.
//!
//! The naive way is to expand each name and look it up in a set. Instead, the wanted names form a
//! trie that is walked one token at a time. Transitions are computed when first needed and then
//! cached, so that nearly every symbol costs one to three table reads until no wanted name is left.

use super::tokens::TokenTable;
use crate::linux::bytes::index;
use std::collections::HashMap;

/// A transition that has not been computed yet.
const UNKNOWN: u32 = u32::MAX;

/// No wanted name starts with the bytes read.
const DEAD: u32 = u32::MAX - 1;

/// The names `first..end` of the sorted list: those that start with the `depth` bytes read so far.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    first: usize,
    end: usize,
    depth: usize,
}

/// A trie over the wanted names with tokens as input symbols.
pub(super) struct Matcher<'w, 't> {
    tokens: &'t TokenTable<'t>,
    /// Wanted names and their indices in the caller's list, sorted by name.
    wanted: Vec<(&'w [u8], usize)>,
    states: Vec<State>,
    ids: HashMap<State, u32>,
    /// For each state, the next state for each token. Row 0 is the start state, where a token
    /// begins with the type character.
    rows: Vec<[u32; 256]>,
}

/// Number of the start state. It has the same wanted names as any other state of depth 0, but
/// expects the type character first.
const START: u32 = 0;

impl<'w, 't> Matcher<'w, 't> {
    pub(super) fn new(tokens: &'t TokenTable<'t>, wanted: &[&'w str]) -> Self {
        let mut wanted: Vec<_> =
            wanted.iter().enumerate().map(|(at, name)| (name.as_bytes(), at)).collect();
        wanted.sort_unstable();
        let everything = State { first: 0, end: wanted.len(), depth: 0 };
        Self {
            tokens,
            wanted,
            states: vec![everything],
            ids: HashMap::new(),
            rows: vec![[UNKNOWN; 256]],
        }
    }

    /// Calls `found(i, at)` for each symbol `i` whose name is at index `at` in the caller's list,
    /// until `found` returns false.
    pub(super) fn run<'n>(
        &mut self,
        names: impl Iterator<Item = &'n [u8]>,
        mut found: impl FnMut(usize, usize) -> bool,
    ) {
        for (symbol, codes) in names.enumerate() {
            let Some(state) = self.walk(codes) else { continue };
            let candidates = self.wanted.get(state.first..state.end).unwrap_or_default();
            // Sorted, so the names that end here come first.
            for &(_, at) in candidates.iter().take_while(|(name, _)| name.len() == state.depth) {
                if !found(symbol, at) {
                    return;
                }
            }
        }
    }

    #[inline]
    fn walk(&mut self, codes: &[u8]) -> Option<State> {
        let mut at = START;
        for &code in codes {
            let known = *self.rows.get(index(at))?.get(usize::from(code))?;
            at = if known == UNKNOWN { self.compute(at, code) } else { known };
            if at == DEAD {
                return None;
            }
        }
        if at == START { None } else { self.states.get(index(at)).copied() }
    }

    #[cold]
    fn compute(&mut self, from: u32, code: u8) -> u32 {
        let to = self.step(from, code).map_or(DEAD, |state| self.id_of(state));
        if let Some(entry) =
            self.rows.get_mut(index(from)).and_then(|row| row.get_mut(usize::from(code)))
        {
            *entry = to;
        }
        to
    }

    /// The state after reading `code`; `None` if no wanted name is left.
    fn step(&self, from: u32, code: u8) -> Option<State> {
        let State { first, end, depth } = *self.states.get(index(from))?;
        let text = self.tokens.text(code);
        let text = if from == START { text.get(1..)? } else { text };
        let candidates = self.wanted.get(first..end)?;
        let part = |name: &'w [u8]| {
            let rest = name.get(depth..).unwrap_or_default();
            rest.get(..text.len()).unwrap_or(rest)
        };
        let before = candidates.partition_point(|&(name, _)| part(name) < text);
        let until = candidates.partition_point(|&(name, _)| part(name) <= text);
        let state = State {
            first: first.checked_add(before)?,
            end: first.checked_add(until)?,
            depth: depth.checked_add(text.len())?,
        };
        (before < until).then_some(state)
    }

    fn id_of(&mut self, state: State) -> u32 {
        let Self { ids, states, rows, .. } = self;
        *ids.entry(state).or_insert_with(|| {
            let id = u32::try_from(states.len()).unwrap_or(DEAD);
            states.push(state);
            rows.push([UNKNOWN; 256]);
            id
        })
    }
}
