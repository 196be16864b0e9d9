//! Whether a path loses so much that frames travel segment by segment.
//!
//! A frame of 43 pieces is lost in part when one of them is: at a loss of 0.1 % that are four in a hundred. Segments with
//! headers of their own cost more work each, and none of them depends on another.

/// Loss from which on segments travel alone, and below which they go together again, in packets of 100,000.
const LOSSY: u64 = 50;
const SOUND: u64 = 20;
/// Packets that a judgement needs: fewer say nothing about so small a share.
const PACKETS_MIN: u64 = 20_000;

/// What is known of a path.
#[derive(Debug, Clone, Copy, Default)]
pub struct Health {
    /// As of the last judgement.
    sent: u64,
    lost: u64,
    lossy: bool,
}

impl Health {
    /// Takes note of how many packets were sent and got lost since the connection began; whether segments go alone.
    pub fn judge(&mut self, sent: u64, lost: u64) -> bool {
        let (packets, gone) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        if sent < self.sent {
            *self = Health { sent, lost, lossy: false }; // another connection
        } else if packets >= PACKETS_MIN {
            let share = gone * 100_000 / packets;
            let lossy = share > if self.lossy { SOUND } else { LOSSY };
            *self = Health { sent, lost, lossy };
        }
        self.lossy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_go_alone_while_much_gets_lost() {
        let mut health = Health::default();
        assert!(!health.judge(10_000, 100), "too few to say");
        assert!(health.judge(30_000, 100));
        assert!(health.judge(60_000, 110), "0.03 % is too much still");
        assert!(!health.judge(90_000, 112));
        assert!(!health.judge(120_000, 124), "0.04 % is not enough yet");
        assert!(health.judge(150_000, 150));
        assert!(!health.judge(100, 50), "a new connection");
    }
}
