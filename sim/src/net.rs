//! The network: UDP between hosts, with loss, delay, duplication, reordering, narrow links and partitions.
//!
//! A packet takes at least one quantum, so that hosts can be stepped one after another: nothing sent in a step arrives in
//! it. Packets under way belong to the network, not to a socket: one that was sent to a host before its crash reaches
//! whoever listens there afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use fabric::seams::Udp;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::actor::HostId;
use crate::clock::HostClock;
use crate::limits::{PACKET_BYTES_MAX, PACKETS_TO_SOCKET_MAX, QUANTUM_US};
use crate::power::Supply;
use crate::trace::{Fate, Trace};

/// First port given to a socket that asks for any.
const EPHEMERAL_PORT_MIN: u16 = 32_768;
/// Time for which a link's sender queue holds packets before it drops them, in microseconds.
const UPLINK_QUEUE_US: u64 = 50_000;

/// The address of a host: 10.x.y.z after its number.
pub fn address(host: HostId) -> IpAddr {
    let [.., b, c, d] = host.0.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, b, c, d))
}

fn host_of(address: IpAddr) -> Option<HostId> {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            (a == 10).then(|| HostId(u64::from_be_bytes([0, 0, 0, 0, 0, b, c, d])))
        }
        IpAddr::V6(_) => None,
    }
}

/// How links behave at present.
#[derive(Debug, Clone, PartialEq)]
pub struct Weather {
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Probability that a packet is held back behind later ones.
    pub reorder: f64,
    /// Time from host to host, in microseconds; at least one quantum.
    pub latency_us: Range<u64>,
    /// What a host can send, in bytes a second.
    pub uplink_bytes_per_s: u64,
}

impl Default for Weather {
    fn default() -> Self {
        let latency_us = QUANTUM_US..QUANTUM_US + 200;
        Weather { loss: 0.0, duplicate: 0.0, reorder: 0.0, latency_us, uplink_bytes_per_s: 125_000_000 }
    }
}

#[derive(Debug)]
struct Packet {
    from: SocketAddr,
    ecn: Option<EcnCodepoint>,
    bytes: Vec<u8>,
}

/// What is on the way to one address, in order of arrival.
#[derive(Debug, Default)]
struct Port {
    socket: Weak<Socket>,
    under_way: BTreeMap<(u64, u64), Packet>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Links {
    weather: Weather,
    /// Pairs (from, to) between which nothing passes.
    cut: BTreeSet<(HostId, HostId)>,
    /// Hosts that reach nobody and that nobody reaches.
    islands: BTreeSet<HostId>,
    /// Extra latency of pairs (from, to), in microseconds.
    slow: BTreeMap<(HostId, HostId), u64>,
    /// When a host's uplink has sent what it was given.
    uplink_free_us: BTreeMap<HostId, u64>,
    ports: BTreeMap<SocketAddr, Port>,
    sent: u64,
    rng: StdRng,
    trace: Trace,
}

/// The network, in the world's hands.
#[derive(Debug, Clone)]
pub struct Net {
    links: Arc<Mutex<Links>>,
}

impl Net {
    /// A network without faults.
    pub fn new(rng: StdRng, trace: Trace) -> Self {
        let links = Links {
            weather: Weather::default(),
            cut: BTreeSet::new(),
            islands: BTreeSet::new(),
            slow: BTreeMap::new(),
            uplink_free_us: BTreeMap::new(),
            ports: BTreeMap::new(),
            sent: 0,
            rng,
            trace,
        };
        Net { links: Arc::new(Mutex::new(links)) }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how all links behave.
    pub fn set_weather(&self, weather: Weather) {
        assert!(
            weather.latency_us.start >= QUANTUM_US,
            "a packet that arrives in the step it was sent in breaks replay"
        );
        self.links().weather = weather;
    }

    /// Lets nothing pass to or from a host.
    pub fn island(&self, host: HostId) {
        self.links().islands.insert(host);
    }

    /// Ends [`Net::island`]; the host's links are as fast as they were.
    pub fn bridge(&self, host: HostId) {
        let mut links = self.links();
        links.islands.remove(&host);
        links.slow.retain(|(from, to), _| *from != host && *to != host);
    }

    /// Lets nothing pass from one host to another.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.links().cut.insert((from, to));
    }

    /// Lets everything pass between all hosts again, at full speed.
    pub fn heal(&self) {
        let mut links = self.links();
        links.cut.clear();
        links.slow.clear();
    }

    /// Makes one direction slower.
    pub fn slow(&self, from: HostId, to: HostId, extra_us: u64) {
        self.links().slow.insert((from, to), extra_us);
    }

    /// The network as one boot of a host sees it.
    pub fn plug(&self, host: HostId, clock: HostClock, supply: Supply) -> Arc<Nic> {
        Arc::new(Nic { host, net: self.clone(), clock, supply })
    }
}

impl Links {
    fn send(&mut self, now_us: u64, from: (HostId, SocketAddr), transmit: &Transmit<'_>) {
        let (host, source) = from;
        let Some(to) = host_of(transmit.destination.ip()) else { return };
        let fate = self.fate(now_us, host, to, transmit);
        self.trace.packet(now_us, host, to, fate, transmit.contents);
        let arrivals = match fate {
            Fate::Arrives(at) => [Some(at), None],
            Fate::ArrivesTwice(first, second) => [Some(first), Some(second)],
            Fate::Lost | Fate::Cut | Fate::Dropped => [None, None],
        };
        let port = self.ports.entry(transmit.destination).or_default();
        for at in arrivals.into_iter().flatten() {
            self.sent += 1;
            let packet = Packet { from: source, ecn: transmit.ecn, bytes: transmit.contents.to_vec() };
            port.under_way.insert((at, self.sent), packet);
            if let Some(waker) = port.waker.take() {
                waker.wake(); // it looks at its queue again in its own next step
            }
        }
    }

    fn fate(&mut self, now_us: u64, from: HostId, to: HostId, transmit: &Transmit<'_>) -> Fate {
        let weather = &self.weather;
        // Every packet takes the same number of draws, so that a cut link does not shift the fate of other packets.
        let (lost, twice) = (self.rng.random_bool(weather.loss), self.rng.random_bool(weather.duplicate));
        let (held, held_us) = (self.rng.random_bool(weather.reorder), self.rng.random_range(0..30_000));
        let latency = self.rng.random_range(weather.latency_us.clone());
        let again = self.rng.random_range(weather.latency_us.clone());
        if self.cut.contains(&(from, to)) || self.islands.contains(&from) || self.islands.contains(&to) {
            return Fate::Cut;
        }
        let full = |port: &Port| port.under_way.len() >= PACKETS_TO_SOCKET_MAX;
        if transmit.contents.len() > PACKET_BYTES_MAX || self.ports.get(&transmit.destination).is_some_and(full) {
            return Fate::Dropped;
        }
        let free_us = self.uplink_free_us.entry(from).or_default();
        let leaves_us = now_us.max(*free_us);
        if leaves_us > now_us + UPLINK_QUEUE_US {
            return Fate::Dropped;
        }
        *free_us = leaves_us + transmit.contents.len() as u64 * 1_000_000 / weather.uplink_bytes_per_s.max(1);
        if lost {
            return Fate::Lost;
        }
        let held_us = if held { held_us } else { 0 };
        let base_us = leaves_us + held_us + self.slow.get(&(from, to)).copied().unwrap_or(0);
        match twice {
            true => Fate::ArrivesTwice(base_us + latency, base_us + again),
            false => Fate::Arrives(base_us + latency),
        }
    }

    fn free_port(&self, ip: IpAddr) -> Option<SocketAddr> {
        let bound = |at: &SocketAddr| self.ports.get(at).is_some_and(|port| port.socket.strong_count() > 0);
        (EPHEMERAL_PORT_MIN..=u16::MAX).map(|port| SocketAddr::new(ip, port)).find(|at| !bound(at))
    }
}

/// The network card of one boot.
#[derive(Debug)]
pub struct Nic {
    host: HostId,
    net: Net,
    clock: HostClock,
    supply: Supply,
}

impl Udp for Nic {
    fn bind(&self, listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let own = address(self.host);
        if !listen.ip().is_unspecified() && listen.ip() != own {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let mut links = self.net.links();
        let local = match listen.port() {
            0 => links.free_port(own).ok_or(io::ErrorKind::AddrInUse)?,
            port => SocketAddr::new(own, port),
        };
        let now_us = self.clock.world_us();
        let port = links.ports.entry(local).or_default();
        // The sockets of an earlier boot may not be dropped yet, but have no power.
        if port.socket.upgrade().is_some_and(|socket| socket.supply.is_on()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        port.under_way = port.under_way.split_off(&(now_us, 0)); // what came before has found nobody
        let socket = Arc::new(Socket {
            host: self.host,
            local,
            net: self.net.clone(),
            clock: self.clock.clone(),
            supply: self.supply.clone(),
            timer: Mutex::new(None),
        });
        port.socket = Arc::downgrade(&socket);
        Ok(socket)
    }
}

/// A bound socket.
#[derive(Debug)]
struct Socket {
    host: HostId,
    local: SocketAddr,
    net: Net,
    clock: HostClock,
    supply: Supply,
    /// Rings when the next packet arrives.
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl Socket {
    /// Waits for world time `at_us`, as this host's clock has it. One clock only decides: rounding between two would
    /// make a packet that is due on one and not on the other spin for ever.
    fn poll_due(&self, cx: &mut Context<'_>, at_us: u64) -> Poll<()> {
        let due = self.clock.local(at_us);
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        if due <= Instant::now() {
            *timer = None;
            return Poll::Ready(());
        }
        let sleep = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        sleep.as_mut().poll(cx)
    }

    /// The next packet, if it has arrived; else `cx` is woken when it does.
    fn take_due(&self, cx: &mut Context<'_>, port: &mut Port) -> Option<Packet> {
        let (&(at_us, _), _) = port.under_way.first_key_value()?;
        if !self.supply.is_on() || self.poll_due(cx, at_us).is_pending() {
            return None;
        }
        port.under_way.pop_first().map(|(_, packet)| packet)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Nothing leaves a host without power, whatever its tasks still do in this step.
        if self.supply.is_on() {
            let now_us = self.clock.world_us();
            self.net.links().send(now_us, (self.host, self.local), transmit);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else { return Poll::Ready(Ok(0)) };
        let mut links = self.net.links();
        let Some(port) = links.ports.get_mut(&self.local) else { return Poll::Pending };
        if let Some(packet) = self.take_due(cx, port) {
            let length = packet.bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&packet.bytes[..length]);
            *meta = RecvMeta { addr: packet.from, len: length, stride: length, ecn: packet.ecn, ..RecvMeta::default() };
            return Poll::Ready(Ok(1));
        }
        port.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
