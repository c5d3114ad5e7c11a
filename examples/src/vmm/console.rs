//! What a guest says.

use crate::lines::last_lines;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How much of what a guest says is remembered.
const MEMORY: usize = 1 << 20;

/// The other end of a guest's serial line: remembers the end of what it says, and writes all of it
/// into a file.
#[derive(Debug, Default)]
pub(crate) struct Console {
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    text: Vec<u8>,
    file: Option<File>,
    /// What the guest stored in its window to the host.
    data: Vec<u8>,
}

/// Most bytes that are taken through the window.
const MOST_DATA: usize = 64 << 20;

impl Console {
    /// Remembers, and writes into a file if there is one.
    pub(crate) fn new(file: Option<File>) -> Self {
        let said = Said { file, ..Said::default() };
        Self { said: Mutex::new(said) }
    }

    /// Waits until the guest has said `text`; `false` when it did not in time, or `is_over` says
    /// that it never will.
    pub(crate) fn wait_for(
        &self,
        text: &str,
        timeout: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> bool {
        // A guest says its words byte by byte: who looked at each would look at all of them as
        // often.
        const LOOK: Duration = Duration::from_millis(5);
        let start = Instant::now();
        loop {
            if contains(&self.said.lock().text, text.as_bytes()) {
                return true;
            }
            if start.elapsed() > timeout || is_over() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The end of what the guest said, in lines.
    pub(crate) fn last_lines(&self, lines: usize) -> String {
        let said = self.said.lock();
        last_lines(&String::from_utf8_lossy(&said.text).replace('\r', ""), lines)
    }

    /// Takes what the guest has stored in its window.
    pub(crate) fn take_data(&self) -> Vec<u8> {
        std::mem::take(&mut self.said.lock().data)
    }

    /// The guest stores bytes in its window.
    pub(super) fn store(&self, bytes: &[u8]) {
        let mut said = self.said.lock();
        if said.data.len() + bytes.len() <= MOST_DATA {
            said.data.extend_from_slice(bytes);
        }
    }

    fn hear(&self, bytes: &[u8]) -> io::Result<()> {
        let mut said = self.said.lock();
        if let Some(file) = &mut said.file {
            file.write_all(bytes)?;
        }
        said.text.extend_from_slice(bytes);
        if said.text.len() > 2 * MEMORY {
            let surplus = said.text.len() - MEMORY;
            said.text.drain(..surplus);
        }
        Ok(())
    }
}

impl Write for &Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hear(bytes)?;
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
    fn what_a_guest_says_is_waited_for() {
        let console = Console::default();
        let soon = Duration::from_millis(30);
        assert!(!console.wait_for("ready", soon, &|| false), "too late");
        assert!(!console.wait_for("ready", Duration::from_secs(600), &|| true), "never");
        (&console).write_all(b"one\r\ntwo\r\nnot re").unwrap();
        std::thread::scope(|scope| {
            let heard =
                scope.spawn(|| console.wait_for("ready", Duration::from_secs(60), &|| false));
            (&console).write_all(b"ady\r\n").unwrap();
            assert!(heard.join().unwrap());
        });
        assert_eq!(console.last_lines(2), "two\nnot ready");
    }

    #[test]
    fn a_guest_that_talks_for_ever_is_forgotten() {
        let console = Console::default();
        for _ in 0..40 {
            (&console).write_all(&[b'x'; MEMORY / 10]).unwrap();
        }
        assert!(console.said.lock().text.len() <= 2 * MEMORY);
    }
}
