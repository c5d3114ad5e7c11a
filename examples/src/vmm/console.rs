//! The host's end of a guest's serial console.

use crate::lines::last_lines;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Least bytes of output that are kept; older output is dropped once there are twice as many.
const KEPT_BYTES: usize = 1 << 20;

/// The host's end of a guest's serial line. Keeps the end of the guest's output, and writes all
/// output to a file if there is one.
#[derive(Debug, Default)]
pub(crate) struct Console {
    state: Mutex<ConsoleState>,
}

#[derive(Debug, Default)]
struct ConsoleState {
    text: Vec<u8>,
    file: Option<File>,
    /// Bytes that the guest wrote to its window to the host.
    data: Vec<u8>,
}

/// Most bytes that are accepted through the window.
const MAX_DATA_BYTES: usize = 64 << 20;

impl Console {
    /// A console that also writes to `file`, if there is one.
    pub(crate) fn new(file: Option<File>) -> Self {
        let state = ConsoleState { file, ..ConsoleState::default() };
        Self { state: Mutex::new(state) }
    }

    /// Waits until the guest's output contains `text`. Returns `false` after `timeout`, or once
    /// `is_over` returns `true`.
    pub(crate) fn wait_for(
        &self,
        text: &str,
        timeout: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> bool {
        // The guest writes single bytes, and each search scans all kept output. Searching after
        // each byte would be quadratic.
        const POLL: Duration = Duration::from_millis(5);
        let start = Instant::now();
        loop {
            if contains(&self.state.lock().text, text.as_bytes()) {
                return true;
            }
            if start.elapsed() > timeout || is_over() {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// The last `lines` lines of the guest's output.
    pub(crate) fn last_lines(&self, lines: usize) -> String {
        let state = self.state.lock();
        last_lines(&String::from_utf8_lossy(&state.text).replace('\r', ""), lines)
    }

    /// Takes the bytes that the guest wrote to its window.
    pub(crate) fn take_data(&self) -> Vec<u8> {
        std::mem::take(&mut self.state.lock().data)
    }

    /// The guest writes bytes to its window. Drops them beyond the limit.
    pub(super) fn store(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if state.data.len() + bytes.len() <= MAX_DATA_BYTES {
            state.data.extend_from_slice(bytes);
        }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(file) = &mut state.file {
            file.write_all(bytes)?;
        }
        state.text.extend_from_slice(bytes);
        if state.text.len() > 2 * KEPT_BYTES {
            let surplus = state.text.len() - KEPT_BYTES;
            state.text.drain(..surplus);
        }
        Ok(())
    }
}

impl Write for &Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_waited_for() {
        let console = Console::default();
        let soon = Duration::from_millis(30);
        assert!(!console.wait_for("ready", soon, &|| false), "too late");
        assert!(!console.wait_for("ready", Duration::from_secs(600), &|| true), "never");
        (&console).write_all(b"one\r\ntwo\r\nnot re").unwrap();
        std::thread::scope(|scope| {
            let found =
                scope.spawn(|| console.wait_for("ready", Duration::from_secs(60), &|| false));
            (&console).write_all(b"ady\r\n").unwrap();
            assert!(found.join().unwrap());
        });
        assert_eq!(console.last_lines(2), "two\nnot ready");
    }

    #[test]
    fn old_output_is_dropped() {
        let console = Console::default();
        for _ in 0..40 {
            (&console).write_all(&[b'x'; KEPT_BYTES / 10]).unwrap();
        }
        assert!(console.state.lock().text.len() <= 2 * KEPT_BYTES);
    }
}
