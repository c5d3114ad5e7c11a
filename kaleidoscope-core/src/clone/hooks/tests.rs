//! Hooks around a machine that only logs calls.

use super::*;
use parking_lot::Mutex;
use std::ffi::OsString;

/// The calls, in order.
type Log = Arc<Mutex<Vec<String>>>;

struct LoggingGuest(Log);

impl Guest for LoggingGuest {
    fn read(&self, _gpa: Gpa, _buf: &mut [u8]) -> Result<(), HookError> {
        Ok(())
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HookError> {
        self.0.lock().push(format!("write {gpa} {}", bytes.len()));
        Ok(())
    }

    fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), HookError> {
        self.0.lock().push(format!("interrupt {vcpu} {vector}"));
        Ok(())
    }
}

/// Logs its calls, and fails at one of the four points.
struct FailingHook(Log, &'static str, &'static str);

impl FailingHook {
    fn record(&self, what: &str) -> Result<(), HookError> {
        self.0.lock().push(format!("{} {what}", self.1));
        assert!(self.2.strip_prefix("panics ") != Some(what), "lost its voice");
        if what == self.2 { Err(HookError::new("hoarse")) } else { Ok(()) }
    }
}

impl CloneHook for FailingHook {
    fn before_freeze(&self, _: &dyn Guest) -> Result<(), HookError> {
        self.record("before freeze")
    }
    fn after_freeze(&self, _: &dyn Guest) -> Result<(), HookError> {
        self.record("after freeze")
    }
    fn before_resume(&self, _: &dyn Guest, _: CloneId) -> Result<(), HookError> {
        self.record("before resume")
    }
    fn after_resume(&self, _: &dyn Guest, _: CloneId) -> Result<(), HookError> {
        self.record("after resume")
    }
}

fn hooks_failing_at(fails: &'static str) -> (Log, Hooks) {
    let log = Log::default();
    let hooks = Hooks::none().and(FailingHook(Arc::clone(&log), "a", "")).and(FailingHook(
        Arc::clone(&log),
        "b",
        fails,
    ));
    let hooks = hooks.and(FailingHook(Arc::clone(&log), "c", ""));
    (log, hooks)
}

fn freeze(log: &Log, hooks: &Hooks) -> Result<(), HookError> {
    hooks.around_freeze(&LoggingGuest(Arc::clone(log)), || {
        log.lock().push("freeze".into());
        Ok(())
    })
}

fn resume(log: &Log, hooks: &Hooks) -> Result<(), HookError> {
    hooks.around_resume(&mut LoggingGuest(Arc::clone(log)), CloneId([7; 16]), |_| {
        log.lock().push("resume".into());
        Ok(())
    })
}

#[test]
fn hooks_are_called_in_order() {
    let (log, hooks) = hooks_failing_at("");
    freeze(&log, &hooks).unwrap();
    let all = ["a before freeze", "b before freeze", "c before freeze", "freeze"];
    let after = ["c after freeze", "b after freeze", "a after freeze"];
    assert_eq!(std::mem::take(&mut *log.lock()), [&all[..], &after[..]].concat());
    resume(&log, &hooks).unwrap();
    let expected = ["a before resume", "b before resume", "c before resume", "resume"];
    assert_eq!(log.lock()[..4], expected);
    assert_eq!(log.lock()[4..], ["a after resume", "b after resume", "c after resume"]);
}

#[test]
fn a_hook_that_fails_prevents_what_follows() {
    let (log, hooks) = hooks_failing_at("before freeze");
    assert_eq!(freeze(&log, &hooks).unwrap_err().to_string(), "hoarse");
    let expected = ["a before freeze", "b before freeze", "b after freeze", "a after freeze"];
    assert_eq!(*log.lock(), expected, "hooks called before the freeze are called after it");
    let (log, hooks) = hooks_failing_at("after freeze");
    assert!(freeze(&log, &hooks).is_err());
    assert_eq!(log.lock().last().unwrap(), "a after freeze");
    let (log, hooks) = hooks_failing_at("before resume");
    assert!(resume(&log, &hooks).is_err());
    assert_eq!(*log.lock(), ["a before resume", "b before resume"]);
}

#[test]
fn a_hook_that_panics_fails_as_any_other() {
    let (log, hooks) = hooks_failing_at("panics before freeze");
    assert_eq!(freeze(&log, &hooks).unwrap_err().to_string(), "a hook panicked: lost its voice");
    let expected = ["a before freeze", "b before freeze", "b after freeze", "a after freeze"];
    assert_eq!(*log.lock(), expected, "hooks called before the freeze are called after it");
    let (log, hooks) = hooks_failing_at("panics after freeze");
    assert!(freeze(&log, &hooks).is_err());
    assert_eq!(log.lock().last().unwrap(), "a after freeze");
    for at in ["panics before resume", "panics after resume"] {
        let (log, hooks) = hooks_failing_at(at);
        assert!(resume(&log, &hooks).unwrap_err().to_string().contains("lost its voice"));
    }
    // The freeze itself panics.
    let (log, hooks) = hooks_failing_at("");
    let broken = hooks.around_freeze::<(), HookError>(&LoggingGuest(Arc::clone(&log)), || {
        panic!("no ice");
    });
    assert_eq!(broken.unwrap_err().to_string(), "a freeze panicked: no ice");
    let after = ["c after freeze", "b after freeze", "a after freeze"];
    assert_eq!(log.lock()[3..], after);
}

#[test]
fn clones_get_their_ids() {
    let log = Log::default();
    let notice = Some(Notice { vcpu: 1, vector: 33 });
    let hooks = Hooks::none()
        .and(IdentityInMemory { gpa: Gpa(0x7000) })
        .and(GenerationId { gpa: Gpa(0x8008), notice });
    resume(&log, &hooks).unwrap();
    assert_eq!(*log.lock(), ["write 0x7000 16", "write 0x8008 16", "resume", "interrupt 1 33"]);
    let crooked = Hooks::none().and(GenerationId { gpa: Gpa(0x8004), notice: None });
    let error = resume(&log, &crooked).unwrap_err();
    assert_eq!(error.to_string(), "no generation id can be at 0x8004");
}

#[test]
fn a_command_knows_its_clone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id");
    let script = format!("printf %s \"$KALEIDOSCOPE_CLONE\" > '{}'", file.display());
    let command = |script: &str| Reconfigure {
        program: "sh".into(),
        arguments: ["-c", script].map(OsString::from).to_vec(),
    };
    let log = Log::default();
    resume(&log, &Hooks::none().and(command(&script))).unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), CloneId([7; 16]).to_string());
    let error = resume(&log, &Hooks::none().and(command("exit 3"))).unwrap_err();
    assert_eq!(error.to_string(), "sh: exit status: 3");
    let nothing = Reconfigure { program: "/does/not/exist".into(), arguments: Vec::new() };
    let error = resume(&log, &Hooks::none().and(nothing)).unwrap_err();
    assert!(error.to_string().starts_with("/does/not/exist cannot be run: "), "{error}");
}

/// A network that logs calls, and whose guest may not answer.
struct LoggingNetwork(Log, bool);

impl LoggingNetwork {
    fn record(&self, what: &str) -> Result<(), HookError> {
        self.0.lock().push(what.into());
        Ok(())
    }
}

impl Network for LoggingNetwork {
    fn disconnect(&self, _: &dyn Guest, _: CloneId) -> Result<(), HookError> {
        self.record("disconnect")
    }
    fn readdress(&self, _: &dyn Guest, _: CloneId) -> Result<(), HookError> {
        self.record("readdress")?;
        if self.1 { Ok(()) } else { Err(HookError::new("no answer")) }
    }
    fn connect(&self, _: &dyn Guest, _: CloneId) -> Result<(), HookError> {
        self.record("connect")
    }
}

#[test]
fn no_packet_passes_under_the_parent_s_address() {
    let log = Log::default();
    resume(&log, &Hooks::none().and(NewAddress(LoggingNetwork(Arc::clone(&log), true)))).unwrap();
    assert_eq!(*log.lock(), ["disconnect", "resume", "readdress", "connect"]);
    let log = Log::default();
    let hooks = Hooks::none().and(NewAddress(LoggingNetwork(Arc::clone(&log), false)));
    assert_eq!(resume(&log, &hooks).unwrap_err().to_string(), "no answer");
    assert_eq!(*log.lock(), ["disconnect", "resume", "readdress"], "it stays cut off");
}
