//! The way to one peer: a short queue for each network, and a task that cuts frames into datagrams and sends them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use fabric::ids::NodeId;
use fabric::model::{Mac, Vni};
use fabric::transport::data::{DataError, DataPath};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::fair::Fair;
use super::health::Health;
use super::{Plane, Port};
use crate::answers;
use crate::drops::Reason;
use crate::frame::{Frame, HEADER_BYTES, Packet};
use crate::limits::{LANE_BYTES_MAX, LANE_IDLE, LANE_LOOK, LANE_RETRY, LANE_SHARE_BYTES, LANE_WAIT};
use crate::superframe::{self, CutError, PIECE_HEADER_BYTES, PieceHeader};
use crate::vnet::{VNET_BYTES, Vnet};

/// A frame on its way out.
pub(super) struct Outgoing {
    pub(super) port: Arc<Port>,
    /// Of its sender's placement.
    pub(super) epoch: u64,
    /// It had come from another node.
    pub(super) forwarded: bool,
    /// With its vnet header.
    pub(super) bytes: Bytes,
}

impl Outgoing {
    /// A frame of a machine here, whose source was judged.
    pub(super) fn of(port: &Arc<Port>, bytes: Bytes) -> Option<Self> {
        let source = bytes.get(VNET_BYTES + 6..VNET_BYTES + 12)?;
        let sender = port.network.endpoint(Mac(source.try_into().ok()?))?;
        Some(Outgoing { port: port.clone(), epoch: sender.epoch, forwarded: false, bytes })
    }

    fn vni(&self) -> Vni {
        self.port.network.vni
    }

    /// What it takes of a lane's room.
    fn share(&self) -> u32 {
        self.bytes.len().min(LANE_SHARE_BYTES) as u32
    }
}

/// Places in the queue: of the network's, and of all.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// The way to a peer, for those who send. Clones share it.
#[derive(Clone)]
pub(super) struct Lane(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Bytes that may wait here.
    room: Arc<Semaphore>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    frames: Fair<Vni, (Outgoing, Places)>,
    /// Bytes that each network may have waiting here.
    rooms: BTreeMap<Vni, Arc<Semaphore>>,
    /// Networks that have waited in vain, and of which nothing has been sent since: they wait no more.
    stuck: BTreeSet<Vni>,
    closed: bool,
}

impl Lane {
    fn new() -> Self {
        let room = Arc::new(Semaphore::new(LANE_BYTES_MAX));
        Lane(Arc::new(Shared { queue: Mutex::default(), room, came: Notify::new() }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network's own room, and whether it is stuck.
    fn room(&self, vni: Vni) -> (Arc<Semaphore>, bool) {
        let mut queue = self.queue();
        let full = || Arc::new(Semaphore::new(LANE_SHARE_BYTES));
        (queue.rooms.entry(vni).or_insert_with(full).clone(), queue.stuck.contains(&vni))
    }

    fn try_places(&self, vni: Vni, share: u32) -> Option<Places> {
        let (own, _) = self.room(vni);
        let own = own.try_acquire_many_owned(share).ok()?;
        Some((own, self.0.room.clone().try_acquire_many_owned(share).ok()?))
    }

    /// Places in the queue, for which it waits for a moment, but not twice in vain.
    async fn places(&self, vni: Vni, share: u32) -> Option<Places> {
        if let Some(places) = self.try_places(vni, share) {
            return Some(places);
        }
        let (own, stuck) = self.room(vni);
        if stuck {
            return None;
        }
        let both = async {
            let own = own.acquire_many_owned(share).await.ok()?;
            Some((own, self.0.room.clone().acquire_many_owned(share).await.ok()?))
        };
        let places = timeout(LANE_WAIT, both).await.ok().flatten();
        if places.is_none() {
            self.queue().stuck.insert(vni);
        }
        places
    }

    /// Adds a frame that has its places; gives it back when the lane has ended.
    fn add(&self, frame: Outgoing, places: Places) -> Result<(), Outgoing> {
        let mut queue = self.queue();
        if queue.closed {
            return Err(frame);
        }
        queue.frames.push(frame.vni(), frame.bytes.len(), (frame, places));
        drop(queue);
        self.0.came.notify_one();
        Ok(())
    }

    fn pop(&self) -> Option<(Outgoing, Places)> {
        let mut queue = self.queue();
        let next = queue.frames.pop()?;
        queue.stuck.remove(&next.0.vni());
        Some(next)
    }

    /// The next frame, and its places, to be kept until it is sent.
    async fn next(&self) -> (Outgoing, Places) {
        loop {
            if let Some(next) = self.pop() {
                return next;
            }
            self.0.came.notified().await;
        }
    }
}

/// The lane to a peer; a new one when there is none.
fn open(plane: &Plane, to: NodeId) -> Lane {
    let mut lanes = plane.lanes();
    if let Some(lane) = lanes.get(&to) {
        return lane.clone();
    }
    let lane = Lane::new();
    lanes.insert(to, lane.clone());
    tokio::spawn(run(plane.clone(), to, lane.clone()));
    lane
}

/// Puts a frame on its way. Waits for room for a moment; `false` when there is none.
pub(super) async fn push(plane: &Plane, to: NodeId, frame: Outgoing) -> bool {
    let lane = open(plane, to);
    match lane.places(frame.vni(), frame.share()).await {
        None => false,
        // One that has just ended is gone from the list: the next one is another.
        Some(places) => lane.add(frame, places).map_or_else(|frame| push_now(plane, to, frame), |()| true),
    }
}

/// The same for who cannot wait.
pub(super) fn push_now(plane: &Plane, to: NodeId, frame: Outgoing) -> bool {
    let lane = open(plane, to);
    let places = lane.try_places(frame.vni(), frame.share());
    places.is_some_and(|places| lane.add(frame, places).is_ok())
}

/// A connection that is in use, and when it was chosen.
struct Chosen {
    path: DataPath,
    at: Instant,
}

async fn run(plane: Plane, to: NodeId, lane: Lane) {
    let (mut chosen, mut health, mut number): (Option<Chosen>, Health, u16) = Default::default();
    loop {
        let (frame, _places) = match timeout(LANE_IDLE, lane.next()).await {
            Ok(next) => next,
            Err(_) if forget(&plane, to, &lane) => return,
            Err(_) => continue,
        };
        if chosen.as_ref().is_none_or(|it| !it.path.is_live() || it.at.elapsed() > LANE_LOOK) {
            let path = choose(&plane, to).await;
            chosen = path.map(|path| Chosen { path, at: Instant::now() });
        }
        let Some(Chosen { path, .. }) = &chosen else {
            frame.port.count(Reason::Unreachable);
            drain(&lane).await;
            continue;
        };
        let state = path.state();
        let alone = health.judge(state.sent, state.lost);
        if let Err(unsent) = send(path, &frame, alone, &mut number).await {
            unsent.count(&frame);
        }
    }
}

/// Drops what waits and what comes, for a while: the peer cannot be reached, and what is old when it can be is of no use.
async fn drain(lane: &Lane) {
    let all = async {
        loop {
            let (frame, _places) = lane.next().await;
            frame.port.count(Reason::Unreachable);
        }
    };
    let _over = timeout(LANE_RETRY, all).await;
}

/// Forgets a lane on which nothing waits.
fn forget(plane: &Plane, to: NodeId, lane: &Lane) -> bool {
    let mut lanes = plane.lanes();
    let mut queue = lane.queue();
    queue.closed = queue.frames.is_empty();
    if queue.closed {
        lanes.remove(&to);
    }
    queue.closed
}

async fn choose(plane: &Plane, to: NodeId) -> Option<DataPath> {
    let path = plane.0.paths.get()?.upgrade()?.path(to).await;
    path.inspect_err(|error| tracing::debug!(peer = %to.short(), error, "no way for frames")).ok()
}

/// Why a frame was not sent.
enum Unsent {
    /// Its sender has to make it smaller.
    TooBig,
    Other(Reason),
}

impl Unsent {
    fn count(&self, frame: &Outgoing) {
        match self {
            Unsent::Other(reason) => frame.port.count(*reason),
            Unsent::TooBig => {
                frame.port.count(Reason::TooBig);
                tell_too_big(frame);
            }
        }
    }
}

/// Sends a frame, whole or `alone` by segments.
async fn send(path: &DataPath, frame: &Outgoing, alone: bool, number: &mut u16) -> Result<(), Unsent> {
    let segments = if alone { superframe::segments(&frame.bytes) } else { None };
    match segments {
        None => send_one(path, frame, &frame.bytes, number).await,
        Some(segments) => {
            for segment in segments {
                send_one(path, frame, &segment, number).await?;
            }
            Ok(())
        }
    }
}

/// Sends one; anew when the path has become narrower meanwhile.
async fn send_one(path: &DataPath, frame: &Outgoing, bytes: &[u8], number: &mut u16) -> Result<(), Unsent> {
    for _ in 0..2 {
        *number = number.wrapping_add(1);
        match send_pieces(path, frame, bytes, *number).await? {
            Ok(()) => return Ok(()),
            Err(DataError::TooBig) => {}
            Err(DataError::Ended(_)) => return Err(Unsent::Other(Reason::Unreachable)),
        }
    }
    Err(Unsent::Other(Reason::Congested))
}

async fn send_pieces(
    path: &DataPath,
    frame: &Outgoing,
    bytes: &[u8],
    number: u16,
) -> Result<Result<(), DataError>, Unsent> {
    let room = path.datagram_bytes().saturating_sub(PIECE_HEADER_BYTES);
    let network = &frame.port.network;
    let ranges = superframe::cut(bytes, room, may_not_be_cut(bytes, network.mtu)).map_err(|error| match error {
        CutError::TooBig => Unsent::TooBig,
        CutError::Malformed => Unsent::Other(Reason::Malformed),
    })?;
    let pieces = ranges.len() as u8; // no frame is cut into more
    let mut buffer = BytesMut::with_capacity(bytes.len() + ranges.len() * PIECE_HEADER_BYTES);
    for (index, range) in ranges.into_iter().enumerate() {
        let (vni, index, &Outgoing { epoch, forwarded, .. }) = (network.vni, index as u8, frame);
        PieceHeader { forwarded, vni, epoch, number, index, pieces }.write(&mut buffer);
        buffer.extend_from_slice(&bytes[range]);
        if let Err(error) = path.send(buffer.split().freeze()).await {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// Whether the sender of a packet has to make it smaller: it is larger than the network takes, and says that it must not be
/// cut. What the network takes gets through, if need be in pieces: a path that is narrow for a moment is the fabric's affair.
fn may_not_be_cut(bytes: &[u8], mtu: u16) -> bool {
    let Some((vnet, inner)) = Vnet::parse(bytes) else { return false };
    let train = vnet.train(inner, inner.len());
    let length = train.map_or(inner.len(), |train| train.head + train.segment);
    let says_so = || matches!(Frame::parse(inner).map(|frame| frame.packet), Ok(Packet::Ip(ip)) if ip.dont_fragment);
    length > HEADER_BYTES + usize::from(mtu) && says_so()
}

/// Tells the sender of a frame how large its packets may be.
fn tell_too_big(frame: &Outgoing) {
    let network = &frame.port.network;
    let Some(inner) = frame.bytes.get(VNET_BYTES..).filter(|_| !frame.forwarded) else { return };
    let Ok(parsed) = Frame::parse(inner) else { return };
    let told = answers::too_big(network, parsed.source, &inner[HEADER_BYTES..], network.mtu);
    told.into_iter().for_each(|told| frame.port.tell(&told));
}
