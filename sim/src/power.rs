//! The power of one host. Everything that a boot holds (disk handles, sockets) asks its supply before it does anything,
//! so that nothing of a crashed boot still acts while its tasks are being dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The switch of a host. Each flick, on or off, ends all supplies given before.
#[derive(Debug, Default)]
pub struct Switch {
    flicks: Arc<AtomicU64>,
}

impl Switch {
    /// Turns the power on for a new boot.
    pub fn on(&self) -> Supply {
        let flick = self.flicks.fetch_add(1, Ordering::Relaxed) + 1;
        Supply { flicks: self.flicks.clone(), flick }
    }

    /// Turns the power off.
    pub fn off(&self) {
        self.flicks.fetch_add(1, Ordering::Relaxed);
    }
}

/// The power as one boot sees it.
#[derive(Debug, Clone)]
pub struct Supply {
    flicks: Arc<AtomicU64>,
    flick: u64,
}

impl Supply {
    /// Whether this boot still has power.
    pub fn is_on(&self) -> bool {
        self.flicks.load(Ordering::Relaxed) == self.flick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supply_ends_with_its_boot_and_never_returns() {
        let switch = Switch::default();
        let first = switch.on();
        assert!(first.is_on());
        switch.off();
        assert!(!first.is_on());
        let second = switch.on();
        assert!(second.is_on() && !first.is_on());
    }
}
