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

#[test]
fn a_scenario_that_cannot_be_read_is_refused_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.scenario");
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    std::fs::write(&path, "nodes 3\nat 10s explode h1\n").unwrap();
    let (code, _, said) = command(&format!("scenario {}", path.display())).told();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("bad.scenario: line 2, column 8: \"explode\" is none of"), "{said}");
}

#[test]
fn an_expectation_that_does_not_hold_fails_and_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wrong.scenario");
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    std::fs::write(&path, "nodes 3\nseconds 25\nat 9s expect voters 5\nat 9s expect leader\n").unwrap();
    let (code, out, said) = command(&format!("scenario {}", path.display())).told();
    assert_eq!(code, Some(1), "{said}");
    assert!(out.contains("FAILED at 9s expect voters 5\nok     at 9s expect leader\n"), "{out}");
    assert!(out.contains("3 vote"), "{out}");
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    let recorded = std::fs::read(path.with_extension("out")).unwrap();
    assert!(out.as_bytes().starts_with(&recorded), "{out}");
}
