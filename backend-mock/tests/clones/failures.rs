//! Single failures and their required effects.

use crate::guest::{Policy, Recipe, Run, run};
use kaleidoscope_core::clone::{Background, EngineOptions, Feedback};
use kaleidoscope_mock::clone::{Call, Ended, Failure, Program, When};
use std::time::Duration;

fn with(failures: &[(Call, When, Failure)], options: EngineOptions) -> Run {
    let program = Program { steps: 2000, give_backs: 0, ..Program::default() };
    run(&Recipe { failures: failures.to_vec(), options, program, ..Recipe::default() })
}

/// Why a clone stopped; panics unless it stopped in an orderly way.
fn reason(run: &Run) -> &str {
    if let Err(error) = run.report.check() {
        panic!("{error}\n{}", run.describe());
    }
    let Ended::Stopped { reason } = &run.report.ended else { panic!("{}", run.describe()) };
    reason
}

#[test]
fn a_dead_source_stops_the_clone() {
    for background in [Background::Off, Background::Full] {
        for feedback in [Feedback::Off, Feedback::Staged] {
            for call in [Call::Request, Call::Receive] {
                let options = EngineOptions::default().background(background).feedback(feedback);
                let run = with(&[(call, When::From(20), Failure::Dead)], options);
                assert!(reason(&run).contains("dead, as scripted"), "{}", reason(&run));
                assert!(run.report.elapsed < Duration::from_secs(25), "{}", run.describe());
            }
        }
    }
}

#[test]
fn a_silent_source_stops_the_clone() {
    let options = EngineOptions::default().timeout(Duration::from_millis(200));
    let run = with(&[(Call::Deliver, When::From(50), Failure::Drop)], options);
    assert!(reason(&run).contains("did not come within 200 ms"), "{}", reason(&run));
}

#[test]
fn a_missing_frame_stops_the_clone_that_touches_it() {
    let run =
        with(&[(Call::Deliver, When::From(50), Failure::Unavailable)], EngineOptions::default());
    assert!(reason(&run).contains("which the snapshot image does not hold"), "{}", reason(&run));
}

#[test]
fn a_frame_that_does_not_exist_stops_the_clone() {
    let run = with(&[(Call::Deliver, When::Nth(50), Failure::Outside)], EngineOptions::default());
    assert!(reason(&run).contains("delivered frame 1000"), "{}", reason(&run));
}

#[test]
fn memory_that_cannot_be_filled_stops_the_clone() {
    let calls = [
        (Call::Install, 30),
        (Call::Zero, 2),
        (Call::ZeroRun, 2),
        (Call::Wait, 30),
        (Call::Read, 30),
    ];
    for (call, nth) in calls {
        let run = with(&[(call, When::Nth(nth), Failure::Fail)], EngineOptions::default());
        let expected = format!("{call} fails, as scripted");
        assert!(reason(&run).contains(&expected), "{}", reason(&run));
    }
}

/// A corrupt page must be detected in transit: after the delivery it is too late, and the mock
/// reports the wrong byte.
#[test]
fn a_wrong_byte_is_seen() {
    let run = with(&[(Call::Deliver, When::Every(50), Failure::Corrupt)], EngineOptions::default());
    let message = run.report.check().unwrap_err().to_string();
    assert!(
        message.contains("saw a wrong byte") && message.contains("of no known page"),
        "{message}"
    );
}

#[test]
fn the_log_records_calls_in_order() {
    let program = Program { steps: 300, ..Program::default() };
    let run = run(&Recipe { policy: Policy::Demand, program, ..Recipe::default() });
    assert!(run.report.is_complete(), "{}", run.describe());
    let log = run.script.log();
    let installed = log.of(Call::Install);
    assert!(!installed.is_empty());
    for entry in installed {
        // A fault, a request, a delivery, and only then the installation.
        let before = log.about(entry.frames[0]);
        let at = |call| before.iter().position(|e| e.call == call).unwrap_or(usize::MAX);
        assert!(at(Call::Event) < at(Call::Request), "{}", run.describe());
        assert!(at(Call::Request) < at(Call::Deliver), "{}", run.describe());
        assert!(at(Call::Deliver) < at(Call::Install), "{}", run.describe());
        // While frames are given back, no page can be installed.
        assert!(matches!(&*entry.outcome, "Installed" | "TryAgain"), "{entry}");
    }
    let statistics = run.engine.statistics().total();
    assert_eq!(statistics.resident, run.memory.statistics().present(), "{}", run.describe());
}
