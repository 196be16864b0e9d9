//! How fast membership works, and why these numbers.
//!
//! A node that only paused must survive a pause of 2 s (design section 5), and a death must be known everywhere within
//! 2.5 s in a fabric of ten. The earliest a silent node can be declared dead is one probe period plus the suspicion after
//! its silence began, so `PROBE_PERIOD + SUSPICION` = 2 s exactly. Each of N nodes probes each other once in N periods in
//! random order, so that the first probe of a dead node begins 0.7 periods later in the median and 4.6 in the 99th
//! percentile, whatever N is: a short period is what keeps the tail short. The rest is spreading the word, which is
//! immediate (whoever learns of a death tells three others at once, so it takes log3 N hops) and backed by a periodic
//! gossip for lost datagrams. In all about 2.2 s in the median and 3.5 s at p99.
//!
//! Suspicions at 5 % loss: a direct probe fails 10 % of the time, three relays all fail 0.6 % of the time, so one probe in
//! 1,600 raises a false suspicion. The suspect is therefore told directly, [`DOUBTS`] times, by whoever suspects it, and
//! its answer refutes: all must be lost for a false death (10 % to the 6th). That is what lets the suspicion be the same
//! in a large fabric: it need not wait for an epidemic to reach the suspect and come back.
//!
//! The idle cost is 3.3 probes and answers a second each way; the gossip timer sends nothing when there is no news.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};

use crate::limits::DATAGRAM_BYTES_MAX;

/// One member is probed this often.
pub const PROBE_PERIOD: Duration = Duration::from_millis(300);
/// A probe is relayed when there was no answer by then: includes a handshake on a network of 30 ms.
pub const PROBE_RTT: Duration = Duration::from_millis(125);
/// From suspicion to death, at full health.
pub const SUSPICION: Duration = Duration::from_millis(1_700);
/// How often a suspect is told during a suspicion.
pub const DOUBTS: u8 = 6;
/// A timer that fires this late is a sign that we are starved.
pub const LATE: Duration = Duration::from_millis(150);
/// A verdict that falls due late waits this long once more, with the suspect asked again: what would have acquitted it may
/// sit in our own queues.
pub const APPEAL: Duration = Duration::from_millis(500);
/// News is gossiped this often, when there is any.
pub const GOSSIP_PERIOD: Duration = Duration::from_millis(100);
/// Members told at once, and relays of a failed probe.
pub const FAN_OUT: usize = 3;
/// News is spread at once, but not more often than this.
pub const SPREAD_PERIOD: Duration = Duration::from_millis(20);
/// A random member is asked for its roster, and a random dead one whether it is, this often.
pub const ANNOUNCE_PERIOD: Duration = Duration::from_secs(10);
/// Dead members are asked more often than that, so that a healed partition merges within seconds.
pub const ANNOUNCE_DOWN_PERIOD: Duration = Duration::from_secs(3);
/// A node without members knocks at known peers, first after this time,
pub const SEEK_MIN: Duration = Duration::from_millis(250);
/// then less and less often, down to this, forever. Known peers that are no members are asked at this pace too.
pub const SEEK_MAX: Duration = Duration::from_secs(10);
/// One look for peers in so many looks at all members, too.
pub const LOOK_EVERY: u32 = 6;
/// The dead are remembered this long: stale news of their life must have died out by then.
pub const REMEMBER_DOWN: Duration = Duration::from_secs(3600);

/// foca's configuration for a fabric of `members` at a health multiplier.
pub(super) fn config(members: usize, multiplier: u8) -> Config {
    let few = |n: usize| NonZeroUsize::new(n).expect("not zero");
    let every = |frequency, num_members| Some(PeriodicParams { frequency, num_members: few(num_members) });
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: few(FAN_OUT),
        max_transmissions: transmissions(members),
        suspect_to_down_after: SUSPICION * (1 + u32::from(multiplier)),
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: few(DATAGRAM_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: every(ANNOUNCE_PERIOD, 1),
        periodic_announce_to_down_members: every(ANNOUNCE_DOWN_PERIOD, 1),
        periodic_gossip: every(GOSSIP_PERIOD, FAN_OUT),
    }
}

/// How often each node passes one piece of news on: with c ln N of it, N^(1-c) nodes miss it; c is 3 or more here.
fn transmissions(members: usize) -> NonZeroU8 {
    let doublings = usize::BITS - members.leading_zeros();
    NonZeroU8::new(4 + 2 * doublings as u8).expect("at least four")
}
