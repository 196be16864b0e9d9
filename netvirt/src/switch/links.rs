//! Interfaces, addresses and routes of a namespace, by `rtnetlink(7)`.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use fabric::model::Mac;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio_util::task::AbortOnDropHandle;

use super::{SwitchError, kernel};
use crate::netns::Netns;

/// Asks the kernel about one namespace. The namespace lives as long as this does.
#[derive(Debug)]
pub(super) struct Links {
    handle: Handle,
    _connection: AbortOnDropHandle<()>,
}

fn refused(what: impl Into<String>) -> impl FnOnce(Error) -> SwitchError {
    |source| SwitchError::Links { what: what.into(), source }
}

/// Whether the kernel says that it is so already.
fn is_there(error: &Error) -> bool {
    matches!(error, Error::NetlinkError(error) if error.raw_code() == -libc::EEXIST)
}

/// Whether the kernel knows nothing of it.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NetlinkError(error) if error.raw_code() == -libc::ENODEV)
}

impl Links {
    pub(super) fn inside(namespace: &Netns) -> Result<Self, SwitchError> {
        let made = namespace.within(rtnetlink::new_connection).map_err(kernel("asking the kernel for interfaces"))?;
        let (connection, handle, _) = made;
        Ok(Links { handle, _connection: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    /// The number of an interface, if there is one of this name.
    pub(super) async fn index(&self, name: &str) -> Result<Option<u32>, SwitchError> {
        let links = self.handle.link().get().match_name(name.to_owned()).execute();
        match std::pin::pin!(links).try_next().await {
            Ok(found) => Ok(found.map(|link| link.header.index)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(refused(format!("looking for {name}"))(error)),
        }
    }

    pub(super) async fn names(&self) -> Result<Vec<String>, SwitchError> {
        let links: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(refused("listing interfaces"))?;
        let name = |link: LinkMessage| {
            link.attributes
                .into_iter()
                .find_map(|it| if let LinkAttribute::IfName(name) = it { Some(name) } else { None })
        };
        let mut names: Vec<String> = links.into_iter().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    async fn existing(&self, name: &str) -> Result<u32, SwitchError> {
        self.index(name).await?.ok_or_else(|| SwitchError::Missing { name: name.to_owned() })
    }

    async fn set(&self, what: &str, link: LinkMessage) -> Result<(), SwitchError> {
        self.handle.link().set(link).execute().await.map_err(refused(what))
    }

    pub(super) async fn make_bridge(&self, name: &str, mac: Mac) -> Result<(), SwitchError> {
        let bridge = LinkBridge::new(name).address(mac.0.to_vec()).down().build();
        self.handle.link().add(bridge).execute().await.map_err(refused("making the bridge"))
    }

    /// Makes a pair of interfaces, `name` here and `end` in another namespace.
    pub(super) async fn make_pair(&self, name: &str, end: &str, other: &Netns) -> Result<(), SwitchError> {
        let pair = LinkVeth::new(name, end).build();
        self.handle.link().add(pair).execute().await.map_err(refused(format!("making the interface {name}")))?;
        let index = self.existing(end).await?;
        let moved = LinkUnspec::new_with_index(index).setns_by_fd(other.as_fd().as_raw_fd()).build();
        self.set("moving an interface into a machine", moved).await
    }

    /// Gives an interface its name and hardware address.
    pub(super) async fn rename(&self, from: &str, to: &str, mac: Mac) -> Result<(), SwitchError> {
        let index = self.existing(from).await?;
        let link = LinkUnspec::new_with_index(index).name(to).address(mac.0.to_vec()).build();
        self.set("naming a machine's interface", link).await
    }

    /// Brings an interface up with these addresses.
    pub(super) async fn bring_up(
        &self,
        name: &str,
        mtu: u16,
        addresses: impl Iterator<Item = (IpAddr, u8)>,
    ) -> Result<(), SwitchError> {
        let index = self.existing(name).await?;
        self.set("bringing an interface up", LinkUnspec::new_with_index(index).mtu(mtu.into()).up().build()).await?;
        for (address, prefix) in addresses {
            let added = self.handle.address().add(index, address, prefix).execute().await;
            match added {
                Err(error) if !is_there(&error) => return Err(refused(format!("giving {name} {address}"))(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes an interface a port of a bridge. It learns no addresses; `takes_unknown` says whether frames for nobody whom the
    /// bridge knows go there.
    pub(super) async fn plug(
        &self,
        name: &str,
        bridge: &str,
        mtu: u16,
        takes_unknown: bool,
    ) -> Result<(), SwitchError> {
        let (index, bridge) = (self.existing(name).await?, self.existing(bridge).await?);
        let link = LinkUnspec::new_with_index(index).controller(bridge).mtu(mtu.into()).build();
        self.set("plugging an interface into the bridge", link).await?;
        let port = LinkBridgePort::new(index).learning(false).flood(takes_unknown).build();
        self.handle.link().set_port(port).execute().await.map_err(refused("setting a port of the bridge"))?;
        self.set("bringing a port up", LinkUnspec::new_with_index(index).up().build()).await
    }

    /// Tells the bridge that a hardware address is behind a port.
    pub(super) async fn place(&self, port: &str, mac: Mac) -> Result<(), SwitchError> {
        let index = self.existing(port).await?;
        let entry = self.handle.neighbours().add_bridge(index, &mac.0);
        let entry = entry.state(NeighbourState::Noarp).flags(NeighbourFlags::Controller).replace();
        entry.execute().await.map_err(refused(format!("placing {mac} at {port}")))
    }

    /// Makes these gateways the way to everywhere else.
    pub(super) async fn route_by(&self, name: &str, gateways: impl Iterator<Item = IpAddr>) -> Result<(), SwitchError> {
        let index = self.existing(name).await?;
        for gateway in gateways {
            let route = match gateway {
                IpAddr::V4(ip) => {
                    RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(ip).output_interface(index).build()
                }
                IpAddr::V6(ip) => {
                    RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(ip).output_interface(index).build()
                }
            };
            match self.handle.route().add(route).execute().await {
                Err(error) if !is_there(&error) => return Err(refused(format!("routing by {gateway}"))(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes an interface, if it is there.
    pub(super) async fn remove(&self, name: &str) -> Result<(), SwitchError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_absent(&error) => Err(refused(format!("removing {name}"))(error)),
            _ => Ok(()),
        }
    }
}
