//! QEMU's machine protocol: one JSON object per line, events between replies.
//!
//! Protocol: QEMU `docs/interop/qmp-spec`. After connecting, QEMU sends a greeting, and
//! `qmp_capabilities` ends the negotiation. Each command's reply contains the command's `id`.

use std::io::{BufRead, BufReader, Read, Write};

use serde_json::{Value, json};

use super::error::{Error, Result};

/// Longest accepted line in bytes. `info mtree` of a large machine has a few hundred kilobytes.
const LONGEST_LINE: u64 = 16 << 20;

/// A connection to QEMU, ready for commands.
#[derive(Debug)]
pub(crate) struct Qmp<S> {
    stream: BufReader<S>,
    next_id: u64,
}

impl<S: Read + Write> Qmp<S> {
    /// Reads the greeting and ends the negotiation.
    ///
    /// # Errors
    /// If the peer does not speak QEMU's machine protocol or closes the connection.
    pub(crate) fn connect(stream: S) -> Result<Self> {
        let mut qmp = Self { stream: BufReader::new(stream), next_id: 0 };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Qmp(format!("expected a greeting, got {greeting}")));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result. Events that arrive meanwhile are ignored.
    ///
    /// # Errors
    /// If the connection fails or QEMU refuses the command.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let failed = |error: std::io::Error| Error::Qmp(format!("{command}: {error}"));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        loop {
            let mut reply = self.read()?;
            if reply.get("id").and_then(Value::as_u64) != Some(id) {
                continue;
            }
            if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            }
            let error = reply.pointer("/error/desc").and_then(Value::as_str);
            let error = error.unwrap_or("refused without a reason");
            return Err(Error::Qmp(format!("{command}: {error}")));
        }
    }

    /// Runs a command of the human monitor and returns what it printed, with plain line ends.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn human(&mut self, command_line: &str) -> Result<String> {
        let result =
            self.execute("human-monitor-command", json!({ "command-line": command_line }))?;
        let text = result
            .as_str()
            .ok_or_else(|| Error::Qmp(format!("{command_line}: printed no text")))?;
        Ok(text.replace("\r\n", "\n"))
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let failed = |error: std::io::Error| Error::Qmp(format!("cannot read: {error}"));
        let count = (&mut self.stream).take(LONGEST_LINE).read_line(&mut line).map_err(failed)?;
        if count == 0 {
            return Err(Error::Qmp("QEMU closed the connection".to_owned()));
        }
        serde_json::from_str(&line).map_err(|error| {
            let start: String = line.chars().take(200).collect();
            Error::Qmp(format!("not a JSON line ({error}): {start}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A peer that sends `input` regardless of commands, and records the commands.
    #[derive(Debug)]
    struct Script {
        input: Cursor<Vec<u8>>,
        commands: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.input.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.commands.extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}}}\r\n{\"return\": {}, \"id\": 0}\r\n";

    fn connect(rest: &str) -> Result<Qmp<Script>> {
        let input = Cursor::new(format!("{GREETING}{rest}").into_bytes());
        Qmp::connect(Script { input, commands: Vec::new() })
    }

    #[test]
    fn replies_are_matched_across_events() {
        let mut qmp = connect(
            "{\"event\": \"STOP\"}\r\n{\"return\": 1, \"id\": 77}\r\n\
             {\"return\": {\"running\": true}, \"id\": 1}\r\n\
             {\"return\": \"CPU#0\\r\\nRAX=0\\r\\n\", \"id\": 2}\r\n",
        )
        .unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["running"], true);
        assert_eq!(qmp.human("info registers -a").unwrap(), "CPU#0\nRAX=0\n");
        let commands = String::from_utf8(qmp.stream.into_inner().commands).unwrap();
        let lines: Vec<Value> =
            commands.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["execute"], "qmp_capabilities");
        assert_eq!(lines[2]["arguments"]["command-line"], "info registers -a");
    }

    #[test]
    fn refusals_and_ends_are_errors() {
        let mut qmp =
            connect("{\"error\": {\"desc\": \"no such command\"}, \"id\": 1}\r\n").unwrap();
        let message = qmp.execute("fly", json!({})).unwrap_err().to_string();
        assert!(message.contains("fly: no such command"), "{message}");
        let message = qmp.execute("stop", json!({})).unwrap_err().to_string();
        assert!(message.contains("closed"), "{message}");
    }

    #[test]
    fn other_protocols_are_refused() {
        let is_refused = |text: &str| {
            let input = Cursor::new(text.as_bytes().to_vec());
            Qmp::connect(Script { input, commands: Vec::new() }).is_err()
        };
        assert!(is_refused("HTTP/1.1 400 Bad Request\r\n"));
        assert!(is_refused("{\"hello\": 1}\r\n"));
        assert!(is_refused(""));
    }
}
