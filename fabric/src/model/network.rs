//! Overlay networks: their numbers, their subnets, and the addresses of machines in them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{Digest, MachineId};

/// A network's number, unique in the cluster: 24 bits, as in RFC 7348. Zero is none.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord))]
pub struct Vni(u32);

impl Vni {
    /// The largest number.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The number, if it is one of a network.
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Vni(number))
    }

    /// Whether a decoded one is one of a network; always true for one that was made here.
    pub fn is_valid(self) -> bool {
        Self::new(self.0).is_some()
    }

    /// As a number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// As it is sent.
    pub fn to_be_bytes(self) -> [u8; 3] {
        let [_, rest @ ..] = self.0.to_be_bytes();
        rest
    }

    /// As it was sent.
    pub fn from_be_bytes(bytes: [u8; 3]) -> Option<Self> {
        let [a, b, c] = bytes;
        Self::new(u32::from_be_bytes([0, a, b, c]))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vni {}", self.0)
    }
}

/// The hardware address of an interface. Those of the fabric are locally administered (IEEE 802, second bit of the first
/// byte), so that they meet no card's.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord))]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// To every interface of a network.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// A machine's interface in a network: the same wherever the machine runs. Five bytes of a hash, so the ledger checks
    /// that no two machines of a network share one.
    pub fn of(machine: MachineId, network: Vni) -> Self {
        let mut text = [0; 19];
        text[..16].copy_from_slice(&machine.0);
        text[16..].copy_from_slice(&network.to_be_bytes());
        let [a, b, c, d, e, ..] = Digest::of(&text).0;
        Mac([0x06, a, b, c, d, e])
    }

    /// A network's gateway, which every node answers for.
    pub fn of_gateway(network: Vni) -> Self {
        let [a, b, c] = network.to_be_bytes();
        Mac([0x02, 0, 0, a, b, c])
    }

    /// Whether it names one interface.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }

    /// The address that goes with it in a subnet of 64 bits (RFC 4291, appendix A).
    pub fn address_in(self, base: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let own = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from(u128::from(base) >> 64 << 64 | u128::from(own))
    }

    /// The link-local address that goes with it.
    pub fn link_local(self) -> Ipv6Addr {
        self.address_in(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The addresses of a network: `10.0.0.0/24`, `fd00:1::/64`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetV1 {
    base: IpAddr,
    prefix: u8,
}
/// Current version of a subnet.
pub type Subnet = SubnetV1;

/// Why a text is not a subnet.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SubnetError {
    /// Neither `10.0.0.0/24` nor `fd00:1::/64`.
    #[error("{0:?} is not a subnet: write its first address and the length of its prefix, as in 10.0.0.0/24")]
    Syntax(String),
    /// The prefix is longer than an address of its kind.
    #[error("a prefix of {prefix} bits is too long: at most {max}")]
    Prefix {
        /// As it was written.
        prefix: u8,
        /// 32 or 128.
        max: u8,
    },
    /// The address has bits outside the prefix.
    #[error("{address} is not the first address of its subnet: did you mean {meant}?")]
    HostBits {
        /// As it was written.
        address: IpAddr,
        /// The subnet in which it lies.
        meant: Subnet,
    },
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl SubnetV1 {
    /// The subnet that begins with `base`.
    ///
    /// # Errors
    /// When the prefix is too long, or `base` is not the first address.
    pub fn new(base: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        let (_, max) = bits(base);
        if prefix > max {
            return Err(SubnetError::Prefix { prefix, max });
        }
        let meant = Self::around(base, prefix);
        if meant.base == base { Ok(meant) } else { Err(SubnetError::HostBits { address: base, meant }) }
    }

    /// The subnet of such a prefix in which an address lies.
    fn around(address: IpAddr, prefix: u8) -> Self {
        let (number, width) = bits(address);
        let spare = u32::from(width.saturating_sub(prefix));
        let first = number.checked_shr(spare).and_then(|top| top.checked_shl(spare)).unwrap_or(0);
        let base = match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(first as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(first)),
        };
        SubnetV1 { base, prefix }
    }

    /// Whether a decoded one keeps the rules; always true for one that was parsed.
    pub fn is_valid(&self) -> bool {
        Self::new(self.base, self.prefix).is_ok()
    }

    /// Its first address, which names it.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// The length of its prefix, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && Self::around(address, self.prefix) == *self
    }

    /// Whether there is an address in both.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// The address `n` after the first one; none when it lies outside.
    pub fn nth(&self, n: u64) -> Option<IpAddr> {
        let (first, _) = bits(self.base);
        let number = first.checked_add(u128::from(n))?;
        let address = match self.base {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).ok()?.into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        };
        self.contains(address).then_some(address)
    }

    /// The last address, which means all interfaces of an IPv4 subnet (RFC 919).
    pub fn last(&self) -> IpAddr {
        let (first, width) = bits(self.base);
        let spare = u32::from(width.saturating_sub(self.prefix));
        let rest = 1u128.checked_shl(spare).map_or(u128::MAX, |size| size - 1);
        match self.base {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from((first | rest) as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(first | rest)),
        }
    }

    /// The address of the gateway: the first one after the subnet's own.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.nth(1)
    }
}

impl FromStr for SubnetV1 {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let refuse = || SubnetError::Syntax(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        Self::new(address.parse().map_err(|_| refuse())?, prefix.parse().map_err(|_| refuse())?)
    }
}

impl fmt::Display for SubnetV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for SubnetV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_vni_has_24_bits_and_is_not_zero() {
        assert_eq!((Vni::new(0), Vni::new(1 << 24)), (None, None));
        let last = Vni::new(Vni::MAX).unwrap();
        assert_eq!(Vni::from_be_bytes(last.to_be_bytes()), Some(last));
        assert_eq!(Vni::new(0x01_02_03).unwrap().to_be_bytes(), [1, 2, 3]);
        assert_eq!(Vni::from_be_bytes([0; 3]), None);
    }

    #[test]
    fn a_machine_has_an_address_of_its_own_in_each_network() {
        let (one, other) = (Vni::new(1).unwrap(), Vni::new(2).unwrap());
        let machine = MachineId([7; 16]);
        assert_eq!(Mac::of(machine, one), Mac::of(machine, one));
        assert_ne!(Mac::of(machine, one), Mac::of(machine, other));
        for mac in [Mac::of(machine, one), Mac::of_gateway(one)] {
            assert!(mac.is_unicast() && mac.0[0] & 2 == 2, "{mac} is local");
        }
        assert_eq!(Mac([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]).link_local(), ip("fe80::3656:78ff:fe9a:bcde"));
        assert!(!Mac::BROADCAST.is_unicast());
    }

    #[test]
    fn subnets_are_read_and_shown_alike() {
        for text in ["10.0.0.0/24", "0.0.0.0/0", "10.1.2.3/32", "fd00:1::/64", "::/0", "fd00::1/128"] {
            assert_eq!(subnet(text).to_string(), text);
            assert!(subnet(text).is_valid());
        }
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/24", "10.0.0.0/24/1", "a/8", "10.0.0.0/300"] {
            assert!(matches!(text.parse::<Subnet>(), Err(SubnetError::Syntax(_))), "{text:?}");
        }
        assert_eq!("10.0.0.0/33".parse::<Subnet>(), Err(SubnetError::Prefix { prefix: 33, max: 32 }));
        let meant = subnet("10.0.0.0/24");
        assert_eq!("10.0.0.7/24".parse::<Subnet>(), Err(SubnetError::HostBits { address: ip("10.0.0.7"), meant }));
    }

    #[test]
    fn addresses_lie_in_subnets_of_their_kind() {
        let (small, all) = (subnet("10.0.0.0/30"), subnet("0.0.0.0/0"));
        assert!(small.contains(ip("10.0.0.3")) && !small.contains(ip("10.0.0.4")));
        assert!(all.contains(ip("255.255.255.255")) && !all.contains(ip("::")));
        assert!(small.overlaps(&all) && all.overlaps(&small) && !small.overlaps(&subnet("10.0.0.4/30")));
        assert!(!subnet("::/0").overlaps(&all));
        assert_eq!((small.nth(3), small.nth(4)), (Some(ip("10.0.0.3")), None));
        assert_eq!(subnet("255.255.255.252/30").nth(4), None, "beyond the last address there is");
        assert_eq!((small.last(), all.last()), (ip("10.0.0.3"), ip("255.255.255.255")));
        assert_eq!(subnet("fd00:1::/64").gateway(), Some(ip("fd00:1::1")));
        assert_eq!(subnet("10.1.2.3/32").gateway(), None);
        assert_eq!(subnet("::/0").last(), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }
}
