//! Why a frame went nowhere, and how often.

use std::fmt;

/// Why a frame went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A length in it is wrong.
    Malformed,
    /// It is tagged for a virtual LAN inside the network.
    Tagged,
    /// Neither ARP nor IP.
    Protocol,
    /// Its hardware address is not its sender's.
    SpoofedMac,
    /// Its address is not its sender's.
    SpoofedAddress,
    /// A machine speaks as router or as server of addresses.
    RogueService,
    /// A question that is answered here goes nowhere else.
    Answered,
    /// Nobody in the network has the address.
    UnknownTarget,
    /// The network has no machine here.
    UnknownNetwork,
    /// The node that sent it does not own the machine that it is from.
    NotOwner,
    /// It is of an earlier placement of its machine.
    StaleEpoch,
    /// It is of a placement that is not known here yet.
    NewerEpoch,
    /// The machine is not here, and nothing follows it from here.
    NotHere,
    /// Larger than the path, and it may not be cut: its sender is told.
    TooBig,
    /// Too many frames to all at once.
    Flood,
    /// Part of it got lost on the way.
    Incomplete,
    /// The way to its target stayed full.
    Congested,
    /// There is no way to the node of its target.
    Unreachable,
}

impl Reason {
    /// Every one.
    pub const ALL: [Reason; 18] = [
        Reason::Malformed,
        Reason::Tagged,
        Reason::Protocol,
        Reason::SpoofedMac,
        Reason::SpoofedAddress,
        Reason::RogueService,
        Reason::Answered,
        Reason::UnknownTarget,
        Reason::UnknownNetwork,
        Reason::NotOwner,
        Reason::StaleEpoch,
        Reason::NewerEpoch,
        Reason::NotHere,
        Reason::TooBig,
        Reason::Flood,
        Reason::Incomplete,
        Reason::Congested,
        Reason::Unreachable,
    ];

    /// Its name in metrics and in the API: stable, `kebab-case`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Tagged => "tagged",
            Reason::Protocol => "protocol",
            Reason::SpoofedMac => "spoofed-mac",
            Reason::SpoofedAddress => "spoofed-address",
            Reason::RogueService => "rogue-service",
            Reason::Answered => "answered",
            Reason::UnknownTarget => "unknown-target",
            Reason::UnknownNetwork => "unknown-network",
            Reason::NotOwner => "not-owner",
            Reason::StaleEpoch => "stale-epoch",
            Reason::NewerEpoch => "newer-epoch",
            Reason::NotHere => "not-here",
            Reason::TooBig => "too-big",
            Reason::Flood => "flood",
            Reason::Incomplete => "incomplete",
            Reason::Congested => "congested",
            Reason::Unreachable => "unreachable",
        }
    }

    /// Whether the ledger is to be asked again: this node may be behind. Tenants and peers can bring these about as often as
    /// they like, so whoever asks limits the rate.
    pub fn asks_again(self) -> bool {
        matches!(self, Reason::UnknownTarget | Reason::NotOwner | Reason::NewerEpoch | Reason::UnknownNetwork)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts of frames that went nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drops([u64; Reason::ALL.len()]);

impl Drops {
    /// Counts one.
    pub fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// How often for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that there were, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().map(|reason| (reason, self.of(reason))).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_and_a_place_of_its_own() {
        let names: BTreeSet<_> = Reason::ALL.into_iter().map(Reason::name).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason}");
        }
        let mut drops = Drops::default();
        drops.count(Reason::Flood);
        drops.count(Reason::Flood);
        assert_eq!(drops.iter().collect::<Vec<_>>(), [(Reason::Flood, 2)]);
    }
}
