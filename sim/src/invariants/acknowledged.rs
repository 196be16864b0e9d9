//! I2, first half: a write that was acknowledged is never lost.
//!
//! Source: design section 14. Clients make tenants under names that are never used twice and never remove them, so that a
//! write is there or is not. A write that timed out is unknown: it is never counted as absent, and never as acknowledged.

use fabric::model::Name;
use raft_store::state::State;

/// Which of these acknowledged names the state lacks, in words; none when it has them all.
pub fn check<'a>(state: &State, acknowledged: impl Iterator<Item = &'a Name>) -> Option<String> {
    let mut lost = acknowledged.filter(|name| !state.tenants.contains_key(*name));
    let first = lost.next()?;
    Some(format!("lacks {} acknowledged writes, the first is {first}", lost.count() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_is_not_there_is_named() {
        let names: Vec<Name> = ["t-1", "t-2"].map(|name| name.parse().unwrap()).into();
        assert_eq!(check(&State::default(), [].iter()), None);
        let found = check(&State::default(), names.iter()).unwrap();
        assert_eq!(found, "lacks 2 acknowledged writes, the first is t-1");
    }
}
