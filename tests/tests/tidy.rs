//! Habits that a program can check: sizes, crate directions, waiting for conditions, and an ARCHITECTURE.md that is true.
#![expect(clippy::disallowed_methods, reason = "this test reads the sources")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const PACKAGES: [&str; 6] = ["fabric", "raft-store", "netvirt", "node", "sim", "tests"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = PACKAGES.iter().map(|package| root().join(package)).collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 20, "only {} sources found: the test looks in the wrong place", found.len());
    found.sort();
    found
}

fn complain(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn files_have_a_size_that_a_reader_can_hold() {
    let long = sources().into_iter().filter_map(|(path, text)| {
        let lines = text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines, at most {FILE_LINES_MAX}", path.display()))
    });
    complain(long.collect());
}

/// Length of each function, by rustfmt's layout: the closing brace stands under the `fn`.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let starts = [
            "fn ",
            "pub fn ",
            "async fn ",
            "pub async fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "pub(crate) async fn ",
            "pub(super) async fn ",
            "unsafe fn ",
            "const fn ",
            "pub const fn ",
        ];
        if !starts.iter().any(|start| code.starts_with(start)) {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - code.len()]);
        // A declaration without a body, perhaps over several lines.
        let ends = lines[at..].iter().find(|line| line.ends_with(';') || line.ends_with('{'));
        if ends.is_some_and(|line| line.ends_with(';')) {
            continue;
        }
        let Some(end) = lines[at..].iter().position(|candidate| *candidate == close) else { continue };
        let body_is_ours = lines[at..at + end].iter().any(|inner| inner.ends_with('{'));
        if body_is_ours {
            found.push((at + 1, code.to_owned(), end + 1));
        }
    }
    found
}

#[test]
fn functions_fit_a_screen() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (line, name, length) in functions(&text) {
            if length > FUNCTION_LINES_MAX {
                faults.push(format!("{}:{line}: {length} lines, at most {FUNCTION_LINES_MAX}: {name}", path.display()));
            }
        }
    }
    complain(faults);
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("FIX", "ME")];
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            faults.extend(
                words
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}:{}: {word}", path.display(), at + 1)),
            );
        }
    }
    complain(faults);
}

/// Time passes in polling loops alone (a function called `until`, `eventually` or `poll...`), and where it is virtual: on
/// a paused tokio clock.
#[test]
fn tests_wait_for_conditions_not_for_time() {
    let word = concat!("sleep", "(");
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let is_test = path.starts_with("tests")
            || path.components().any(|part| part.as_os_str() == "tests")
            || path.ends_with("tests.rs");
        if !is_test || path.ends_with("tests/src/poll.rs") || text.contains("start_paused") {
            continue;
        }
        let mut function = "";
        for (at, line) in text.lines().enumerate() {
            if let Some((_, rest)) = line.split_once("fn ") {
                function = rest;
            }
            let polls = ["until", "eventually", "poll"].iter().any(|name| function.starts_with(name));
            if line.contains(word) && !polls && !line.trim_start().starts_with("//") {
                faults.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    complain(faults);
}

#[test]
fn ignored_tests_say_what_they_need() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("#[ignore") && !code.starts_with("#[ignore = \"needs ") {
                faults.push(format!("{}:{}: {code}", path.display(), at + 1));
            }
        }
    }
    complain(faults);
}

/// `fabric <- raft-store, netvirt <- node <- sim <- tests`; raft-store and netvirt never meet.
#[test]
fn packages_depend_in_one_direction() {
    let allowed = [
        ("fabric", &[][..]),
        ("raft-store", &["fabric"]),
        ("netvirt", &["fabric"]),
        ("node", &["fabric", "raft-store", "netvirt"]),
        ("sim", &["fabric", "raft-store", "netvirt", "smartnode"]),
        ("tests", &["fabric", "raft-store", "netvirt", "smartnode", "smartnode-sim"]),
    ];
    let ours: BTreeSet<&str> = ["fabric", "raft-store", "netvirt", "smartnode", "smartnode-sim"].into();
    let mut faults = Vec::new();
    for (package, may) in allowed {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        for line in manifest.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ours.contains(name) && !line.starts_with("name") && !may.contains(&name) {
                faults.push(format!("{package} depends on {name}"));
            }
        }
    }
    complain(faults);
}

/// Foreign types stay where design section 2 puts them.
#[test]
fn libraries_stay_inside_their_packages() {
    let homes = [
        ("openraft", &["raft-store", "sim"][..]),
        ("foca", &["fabric"]),
        ("chitchat", &["fabric"]),
        ("quinn", &["fabric", "netvirt", "sim"]),
    ];
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (library, packages) in homes {
            let at_home = packages.iter().any(|package| path.starts_with(package));
            let used = text.lines().any(|line| {
                !line.trim_start().starts_with("//")
                    && (line.contains(&format!("{library}::")) || line.contains(&format!("use {library}")))
            });
            if used && !at_home && !path.starts_with("tests/tests/tidy.rs") {
                faults.push(format!("{} uses {library}", path.display()));
            }
        }
    }
    complain(faults);
}

/// ARCHITECTURE.md's map names every module directory, and nothing that is gone.
#[test]
fn the_map_is_true() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut faults = Vec::new();
    let mut there = BTreeSet::new();
    for (path, _) in sources() {
        let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
        if let [package, "src", module, ..] = parts[..] {
            there.insert(format!("{package}/src/{}", module.trim_end_matches(".rs")));
        }
    }
    for module in &there {
        if !["lib", "main"].iter().any(|plain| module.ends_with(&format!("/{plain}")))
            && !page.contains(&format!("`{module}`"))
        {
            faults.push(format!("ARCHITECTURE.md does not name `{module}`"));
        }
    }
    for word in page.split('`').skip(1).step_by(2).filter(|word| word.contains("/src/")) {
        if !there.contains(word) && !root().join(word).exists() {
            faults.push(format!("ARCHITECTURE.md names `{word}`, which is not there"));
        }
    }
    complain(faults);
}

/// "What is absent" in ARCHITECTURE.md, as far as words in sources can tell.
#[test]
fn what_is_said_to_be_absent_is_absent() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let absences = [
        ("`netvirt` never reads Raft", "netvirt", "raft_store"),
        ("`fabric` knows no HTTP", "fabric", "axum"),
        ("`raft-store` starts no process", "raft-store", "Command::new"),
        ("`raft-store` opens no socket", "raft-store", "UdpSocket"),
    ];
    let mut faults = Vec::new();
    for (claim, package, word) in absences {
        if !page.contains(claim) {
            faults.push(format!("ARCHITECTURE.md no longer says: {claim}"));
        }
        let used = sources().into_iter().filter(|(path, text)| path.starts_with(package) && text.contains(word));
        faults.extend(used.map(|(path, _)| format!("{} contains {word}, yet: {claim}", path.display())));
    }
    complain(faults);
}

/// Set, README.md's section is written anew from the committed results.
const WRITE: &str = "SMARTNODE_WRITE_README";

/// README.md's figures are those of the committed results, and nobody's else.
#[test]
fn the_figures_are_those_that_were_measured() {
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let results = fs::read_to_string(root().join("tests/benches/results.json")).unwrap();
    let results = serde_json::from_str(&results).unwrap();
    let made = smartnode_tests::report::replaced(&page, &results).expect("README.md has the marks of its section");
    if std::env::var_os(WRITE).is_some() {
        return fs::write(root().join("README.md"), made).unwrap();
    }
    assert!(made == page, "README.md's figures are not those of results.json: make bench RECORD=1 writes both");
}
