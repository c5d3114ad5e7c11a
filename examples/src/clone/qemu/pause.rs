//! Control of a VM that is captured: whatever happens, it runs on as it did before.

use super::parent::Parent;
use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_with};
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the state of a migration is looked at.
const TICK: Duration = Duration::from_millis(1);

/// QEMU's command that lets a VM run on.
const CONTINUE: &str = "cont";

/// How long QEMU may take to finalize a migration, or to end one.
const FINAL: Duration = Duration::from_secs(5);

/// The name of QEMU's capability that has the parent of a migration pause at its end.
pub(super) const PAUSE: &str = "pause-before-switchover";

/// A VM under capture. On drop, and after this process was killed, the VM runs on if it did before,
/// with the settings that it had.
pub(super) struct Held<'p> {
    pub(super) parent: &'p mut Parent,
    deadline: Instant,
    undo: Undo,
    armed: Option<Armed>,
}

impl<'p> Held<'p> {
    /// Takes control of a VM until `deadline`.
    pub(super) fn new(parent: &'p mut Parent, deadline: Instant) -> Result<Self, Failure> {
        let undo = Undo::Resume {
            socket: parent.qmp.path().to_owned(),
            commands: restoring(parent),
            connection: Some(Arc::new(parent.qmp.descriptor()?)),
        };
        let armed = Some(arm_with(undo.clone(), || Ok::<_, Failure>(()))?.1);
        parent.qmp.forget_events();
        Ok(Self { parent, deadline, undo, armed })
    }

    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        self.parent.qmp.execute("stop", json!({})).map(drop)
    }

    /// Sets these capabilities, and no others.
    pub(super) fn capabilities(&mut self, wanted: &[&str]) -> Result<(), Failure> {
        let names = self.parent.capabilities.iter().map(|(name, _)| name.clone());
        let all: Vec<_> = names
            .map(|name| json!({ "state": wanted.contains(&name.as_str()), "capability": name }))
            .collect();
        let set = json!({ "capabilities": all });
        self.parent.qmp.execute("migrate-set-capabilities", set)?;
        // The connection is local: there is nothing to be spared.
        let fast = json!({ "max-bandwidth": 1_u64 << 40 });
        self.parent.qmp.execute("migrate-set-parameters", fast).map(drop)
    }

    /// Starts a migration into a descriptor.
    pub(super) fn migrate(&mut self, into: std::os::fd::BorrowedFd<'_>) -> Result<(), Failure> {
        self.parent.qmp.pass(into)?;
        let uri = format!("fd:{}", crate::qemu::qmp::PASSED);
        self.parent.qmp.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits until the migration is in this state. `between` is called again and again.
    pub(super) fn wait(
        &mut self,
        wanted: &str,
        between: &mut dyn FnMut(&mut Parent) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            let answer = self.parent.qmp.execute("query-migrate", json!({}))?;
            let status = answer.get("status").and_then(|status| status.as_str());
            match status {
                Some(status) if status == wanted => return Ok(()),
                Some("failed" | "cancelled" | "completed") | None => {
                    let why = answer.get("error-desc").and_then(|why| why.as_str());
                    let why = why.unwrap_or("QEMU's own messages may say why");
                    let status = status.unwrap_or("not begun");
                    let what = format!("saving the VM: {status}: {why}");
                    return Err(Failure::at(self.parent.qmp.path(), what));
                }
                Some(_) => {}
            }
            if Instant::now() >= self.deadline {
                let what = format!("saving the VM does not come to the state {wanted} in time");
                return Err(Failure::at(self.parent.qmp.path(), what)
                    .hint("--timeout allows more time; --way copy pauses the VM meanwhile"));
            }
            between(self.parent)?;
            sleep(TICK);
        }
    }

    /// Lets the VM run on, if it did before.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        if !self.parent.is_running {
            return Ok(());
        }
        self.insist(CONTINUE, &json!({}))
    }

    /// Runs a command that QEMU refuses for a moment: a migration that is complete may not be
    /// finalized yet, and one that was canceled may not have ended.
    fn insist(&mut self, command: &str, arguments: &Value) -> Result<(), Failure> {
        let qmp = &mut self.parent.qmp;
        let last = Instant::now() + FINAL;
        loop {
            match qmp.execute(command, arguments.clone()) {
                Err(_) if !qmp.is_lost() && Instant::now() < last => sleep(TICK),
                done => return done.map(drop),
            }
        }
    }

    /// Restores what was changed. Returns how long the VM was paused, by QEMU's clock.
    pub(super) fn end(mut self) -> Result<Duration, Failure> {
        self.restore()?;
        if let Some(armed) = self.armed.take() {
            armed.disarm();
        }
        let at = |name: &str| self.parent.qmp.event(name);
        Ok(match (at("STOP"), at("RESUME")) {
            (Some(stop), Some(resume)) => resume.saturating_sub(stop),
            _ => Duration::ZERO,
        })
    }

    /// Runs all commands of the cleanup action, even if one of them fails.
    fn restore(&mut self) -> Result<(), Failure> {
        let mut done = Ok(());
        for (command, arguments) in restoring(self.parent) {
            done = done.and(self.insist(&command, &arguments));
        }
        done
    }
}

/// The commands that undo what a capture does to a VM.
fn restoring(parent: &Parent) -> Vec<(String, Value)> {
    let all = &parent.capabilities;
    let all: Vec<_> =
        all.iter().map(|(name, state)| json!({ "state": state, "capability": name })).collect();
    let runs = parent.is_running.then(|| (CONTINUE, json!({})));
    let settings = [
        ("migrate-set-capabilities", json!({ "capabilities": all })),
        ("migrate-set-parameters", json!({ "max-bandwidth": parent.bandwidth })),
    ];
    runs.into_iter().chain(settings).map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Some(armed) = self.armed.take() else { return };
        // After an error, of which the caller knows.
        let _ = self.parent.qmp.execute("migrate_cancel", json!({}));
        match self.restore() {
            Ok(()) => armed.disarm(),
            Err(_) => {
                // QEMU may follow later. The action stays armed: at the end of this process the
                // guard makes sure that it has.
                let _ = self.undo.perform();
                std::mem::forget(armed);
            }
        }
    }
}
