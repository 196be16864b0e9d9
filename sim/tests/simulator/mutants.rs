//! The planted bugs fit the code of today. That each is found is what `make mutants` shows: that takes an hour.

use std::path::{Path, PathBuf};
use std::process::Command;

fn patches() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    #[expect(clippy::disallowed_methods, reason = "a directory of the sources")]
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "patch")).collect()
}

#[test]
fn every_mutant_applies_and_says_what_it_breaks() {
    let patches = patches();
    assert!(patches.len() >= 16, "{} mutants", patches.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for patch in patches {
        #[expect(clippy::disallowed_methods, reason = "a file of the sources")]
        let text = std::fs::read_to_string(&patch).unwrap();
        let said =
            |head: &str| text.lines().any(|line| line.strip_prefix(head).is_some_and(|rest| !rest.trim().is_empty()));
        assert!(said("Bug: ") && said("Breaks: I"), "{} does not say what it is", patch.display());
        let done = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root).output().unwrap();
        assert!(done.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&done.stderr));
    }
}
