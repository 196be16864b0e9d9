//! The scenarios that are shipped: each holds, and says what its record says.

use std::path::{Path, PathBuf};

use crate::runs::command;

fn shipped() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    #[expect(clippy::disallowed_methods, reason = "a directory of the sources")]
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "scenario")).collect();
    scripts.sort();
    scripts
}

/// Every third one from `first` on: a test of its own each, since all of them together take minutes.
fn check(first: usize) {
    let scripts: Vec<PathBuf> = shipped().into_iter().skip(first).step_by(3).collect();
    assert!(scripts.len() >= 4, "{} scenarios", scripts.len());
    for some in scripts.chunks(2) {
        let runs: Vec<_> = some.iter().map(|path| command(&format!("scenario {} --check", path.display()))).collect();
        runs.into_iter().for_each(|run| drop(run.success()));
    }
}

#[test]
fn scenarios_hold_and_say_what_is_recorded() {
    check(0);
}

#[test]
fn more_scenarios_hold_and_say_what_is_recorded() {
    check(1);
}

#[test]
fn the_other_scenarios_hold_and_say_what_is_recorded() {
    check(2);
}

fn write(path: &Path, script: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    std::fs::write(path, script).unwrap();
}

#[test]
fn a_scenario_that_cannot_be_read_is_refused_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.scenario");
    for (script, reason) in [
        (&b"nodes 3\nat 10s explode h1\n"[..], "bad.scenario: line 2, column 8: \"explode\" is none of"),
        (b"nodes 3\nat 10s \xff\n", "bad.scenario: line 2, column 8: this is no UTF-8"),
    ] {
        write(&path, script);
        let (code, _, said) = command(&format!("scenario {}", path.display())).told();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn what_has_no_end_or_would_be_overwritten_is_no_scenario() {
    for (file, reason) in
        [("/dev/zero", "/dev/zero has more than 1048576 bytes"), ("my.out", "my.out is where its own record would go")]
    {
        let (code, _, said) = command(&format!("scenario {file}")).told();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_run_of_another_seed_is_not_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short.scenario");
    write(&path, b"nodes 1\nseconds 20\nat 19s expect leader\n");
    let out = command(&format!("scenario {} --seed 2", path.display())).success();
    assert!(out.contains("h1 leads, others alive to it: 0, voters: 1, takeovers so far: 0"), "{out}");
    assert!(!path.with_extension("out").exists());
}

#[test]
fn an_expectation_that_does_not_hold_fails_and_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wrong.scenario");
    let script = "nodes 3\nseconds 25\nat 8s wall leader 1s\nat 9s expect voters 5\nat 9s expect leader\n\
                  at 9s expect leader other\nat 24999ms expect no writes h1\n";
    write(&path, script.as_bytes());
    let (code, out, said) = command(&format!("scenario {}", path.display())).told();
    assert_eq!(code, Some(1), "{said}");
    let recorded = "       h1 leads, others alive to it: 2, voters: 3, takeovers so far: 0\n\
                    ok     at 8s wall leader 1s\n\
                    FAILED at 9s expect voters 5\n\
                    ok     at 9s expect leader\n\
                    FAILED at 9s expect leader other\n\
                    ok     at 24999ms expect no writes h1\n\
                    FAILED invariants, and convergence in the calm\n";
    assert!(out.starts_with(recorded), "{out}");
    assert!(out.contains("expect voters 5: 3 vote (at 9000 ms)"), "{out}");
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    let kept = std::fs::read(path.with_extension("out")).unwrap();
    assert_eq!(kept, recorded.as_bytes());
}
