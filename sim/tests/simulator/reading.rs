//! What a failure is read by: the story of a run, and the smallest run that still fails.

use crate::runs::command;

#[test]
fn a_replay_is_the_same_run_told_with_filters() {
    let arguments = "5 --software fragile --seconds 30 --faults daemon";
    let (code, story, said) = command(&format!("replay {arguments}")).told();
    assert_eq!(code, Some(1), "{said}");
    assert!(story.contains("boots for the 2. time"), "{story}");
    assert!(story.contains("VIOLATION h"), "{story}");
    let (_, filtered, _) = command(&format!("replay {arguments} --node 1 --json")).told();
    let lines: Vec<serde_json::Value> = filtered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty() && lines.len() < story.lines().count());
    assert!(lines.iter().all(|line| line["kind"] != "packet"));
}

#[test]
fn a_machine_is_followed_and_an_unknown_one_refused() {
    let arguments = "replay 2 --seconds 40 --faults none";
    let (code, story, said) = command(arguments).told();
    assert_eq!(code, Some(0), "{said}");
    let made = story.lines().find(|line| line.contains("create-machine default/m")).expect("machines are made");
    let name = made.split("default/").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let (_, one, _) = command(&format!("{arguments} --machine {name}")).told();
    assert!(one.contains("runs in epoch 1"), "{one}");
    assert!(!one.contains("boots for"), "{one}");
    let (code, _, said) = command(&format!("{arguments} --machine nonesuch")).told();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("there is no machine \"nonesuch\": this run made m"), "{said}");
}

#[test]
fn a_failure_shrinks_to_what_it_needs() {
    let (code, smallest, said) = command("shrink 5 --software fragile --nodes 4").told();
    assert_eq!(code, Some(0), "{said}");
    assert!(smallest.contains("F1: it booted again"), "{smallest}");
    let command = smallest.lines().last().unwrap();
    assert!(command.starts_with("smartnode-sim replay 5 --seconds 2"), "{smallest}\n{said}");
    // One of the kinds that end a daemon.
    let fault = command.split(" --faults ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(["crash", "daemon", "island"].contains(&fault), "{smallest}\n{said}");
    assert!(command.contains(" --nodes 2 ") && command.contains(" --software fragile --skip "), "{smallest}\n{said}");
}
