//! From applied ledger entries to events.

use fabric::events::Happening;

/// The event of an applied command: its verb and subject as `Command::verb` and `Command::about` give them.
pub fn happening(index: u64, verb: &'static str, about: &str) -> Happening {
    let kind = match verb {
        "confirm" => "machine-running",
        "place" => "machine-placed",
        "takeover" => "machine-taken-over",
        "failed" => "machine-failed",
        verb => verb,
    };
    let message = format!("{verb} {about}").trim_end().to_owned();
    Happening { kind, subject: about.to_owned(), message, ledger_index: Some(index), data: Vec::new() }
}
