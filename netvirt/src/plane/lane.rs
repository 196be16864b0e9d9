//! The way to one peer: a short queue for each network, and a task that cuts frames into datagrams and sends them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use fabric::ids::NodeId;
use fabric::model::Vni;
use fabric::transport::data::{DataError, DataPath};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::fair::Fair;
use super::health::Health;
use super::{Plane, Port};
use crate::answers;
use crate::drops::Reason;
use crate::frame::{Frame, HEADER_BYTES, Packet};
use crate::limits::{LANE_BYTES_MAX, LANE_IDLE, LANE_WAIT};
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

/// The way to a peer, for those who send. Clones share it.
#[derive(Clone)]
pub(super) struct Lane(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    frames: Fair<Vni, (Outgoing, OwnedSemaphorePermit)>,
    /// Bytes that each network may have waiting here: the bound of the queue.
    rooms: BTreeMap<Vni, Arc<Semaphore>>,
    closed: bool,
}

impl Lane {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, vni: Vni) -> Arc<Semaphore> {
        let full = || Arc::new(Semaphore::new(LANE_BYTES_MAX));
        self.queue().rooms.entry(vni).or_insert_with(full).clone()
    }

    /// Adds a frame that has room; `false` when the lane has ended.
    fn add(&self, vni: Vni, frame: Outgoing, room: OwnedSemaphorePermit) -> bool {
        let mut queue = self.queue();
        if queue.closed {
            return false;
        }
        let bytes = frame.bytes.len();
        queue.frames.push(vni, bytes, (frame, room));
        drop(queue);
        self.0.came.notify_one();
        true
    }

    /// The next frame, and its place among those that wait, to be kept until it is sent.
    async fn next(&self) -> (Outgoing, OwnedSemaphorePermit) {
        loop {
            if let Some(next) = self.queue().frames.pop() {
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
    let lane = Lane(Arc::new(Shared { queue: Mutex::default(), came: Notify::new() }));
    lanes.insert(to, lane.clone());
    tokio::spawn(run(plane.clone(), to, lane.clone()));
    lane
}

fn bytes_of(frame: &Outgoing) -> u32 {
    frame.bytes.len().min(LANE_BYTES_MAX) as u32
}

/// Puts a frame on its way. Waits for room for a moment; `false` when there is none.
pub(super) async fn push(plane: &Plane, to: NodeId, vni: Vni, frame: Outgoing) -> bool {
    let lane = open(plane, to);
    match timeout(LANE_WAIT, lane.room(vni).acquire_many_owned(bytes_of(&frame))).await {
        Ok(Ok(room)) => lane.add(vni, frame, room),
        _ => false,
    }
}

/// The same for who cannot wait.
pub(super) fn push_now(plane: &Plane, to: NodeId, vni: Vni, frame: Outgoing) -> bool {
    let lane = open(plane, to);
    let room = lane.room(vni).try_acquire_many_owned(bytes_of(&frame));
    room.is_ok_and(|room| lane.add(vni, frame, room))
}

async fn run(plane: Plane, to: NodeId, lane: Lane) {
    let (mut path, mut health, mut number): (Option<DataPath>, Health, u16) = Default::default();
    loop {
        let (frame, _room) = match timeout(LANE_IDLE, lane.next()).await {
            Ok(next) => next,
            Err(_) if forget(&plane, to, &lane) => return,
            Err(_) => continue,
        };
        if path.as_ref().is_none_or(|path| !path.is_live()) {
            path = connect(&plane, to).await;
        }
        let Some(live) = &path else {
            frame.port.count(Reason::Unreachable);
            continue;
        };
        let state = live.state();
        let alone = health.judge(state.sent, state.lost);
        if let Err(reason) = send(live, &frame, alone, &mut number).await {
            refuse(&frame, reason);
        }
    }
}

/// Forgets a lane on which nothing waits. Whoever has found it before has its frame counted as dropped, and opens a new one
/// with the next.
fn forget(plane: &Plane, to: NodeId, lane: &Lane) -> bool {
    let mut lanes = plane.lanes();
    let mut queue = lane.queue();
    queue.closed = queue.frames.is_empty();
    if queue.closed {
        lanes.remove(&to);
    }
    queue.closed
}

async fn connect(plane: &Plane, to: NodeId) -> Option<DataPath> {
    let path = plane.0.paths.get()?.path(to).await;
    path.inspect_err(|error| tracing::debug!(peer = %to.short(), error, "no way for frames")).ok()
}

/// Sends a frame, whole or `alone` by segments.
async fn send(path: &DataPath, frame: &Outgoing, alone: bool, number: &mut u16) -> Result<(), Reason> {
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

async fn send_one(path: &DataPath, frame: &Outgoing, bytes: &[u8], number: &mut u16) -> Result<(), Reason> {
    let room = path.datagram_bytes().saturating_sub(PIECE_HEADER_BYTES);
    let network = frame.port.network();
    let ranges = superframe::cut(bytes, room, may_not_be_cut(bytes, network.mtu)).map_err(|error| match error {
        CutError::TooBig => Reason::TooBig,
        CutError::Malformed => Reason::Malformed,
    })?;
    *number = number.wrapping_add(1);
    let pieces = ranges.len() as u8; // no frame is cut into more
    let mut buffer = BytesMut::with_capacity(bytes.len() + ranges.len() * PIECE_HEADER_BYTES);
    for (index, range) in ranges.into_iter().enumerate() {
        let vni = network.vni;
        let Outgoing { epoch, forwarded, .. } = *frame;
        let header = PieceHeader { forwarded, vni, epoch, number: *number, index: index as u8, pieces };
        header.write(&mut buffer);
        buffer.extend_from_slice(&bytes[range]);
        path.send(buffer.split().freeze()).await.map_err(|error| match error {
            DataError::TooBig => Reason::TooBig, // the path has become narrower: its sender tries again
            DataError::Ended(_) => Reason::Unreachable,
        })?;
    }
    Ok(())
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

/// Counts a frame that was not sent, and tells its sender when it was too large.
fn refuse(frame: &Outgoing, reason: Reason) {
    frame.port.count(reason);
    if reason != Reason::TooBig || frame.forwarded {
        return;
    }
    let network = frame.port.network();
    let Some(inner) = frame.bytes.get(VNET_BYTES..) else { return };
    let Ok(parsed) = Frame::parse(inner) else { return };
    let told = answers::too_big(&network, parsed.source, &inner[HEADER_BYTES..], network.mtu);
    told.into_iter().for_each(|told| frame.port.tell(&told));
}
