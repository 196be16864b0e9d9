use fabric::ids::ClusterId;
use proptest::prelude::*;

use super::*;

/// A state of one record of most kinds, without `apply`: its bytes depend on the record types alone.
fn small() -> State {
    let settings = Settings { cluster_id: ClusterId([9; 16]), epoch: 1, feature_level: 1, ..Settings::default() };
    let mut state = State::default();
    state.settings = settings;
    let ca = CaRecord { cert_der: vec![1; 4], key_pkcs8: Some(vec![2; 4]), added_ms: 3, revision: 4 };
    state.cas.insert(Digest::of(&ca.cert_der), ca);
    let tenant = TenantRecord {
        name: "default".parse().unwrap(),
        parent: None,
        quota: fabric::model::Quota { machines: Some(7), ..Default::default() },
        created_ms: 5,
        revision: 6,
    };
    state.tenants.insert(tenant.name.clone(), tenant);
    state
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_snapshot_gives_back_its_state() {
    let state = small();
    let records: Vec<_> = to_records(&state, CaKeys::With).collect();
    assert_eq!(records.len(), 4);
    assert_eq!(from_records(&records), Ok(state));
}

#[test]
fn keys_stay_where_they_belong() {
    let read = from_records(to_records(&small(), CaKeys::Without)).unwrap();
    assert!(read.cas.values().all(|ca| ca.key_pkcs8.is_none()));
    assert!(read.initialized());
    assert_ne!(read.digest(), small().digest());
}

/// These bytes are on disks. If this test fails, the format has changed: add a new version of the record instead.
#[test]
fn golden_bytes() {
    let bodies: Vec<String> =
        to_records(&small(), CaKeys::With).map(|frame| hex(&frame[wire::HEADER_BYTES..])).collect();
    assert_eq!(bodies, GOLDEN);
}

#[rustfmt::skip]
const GOLDEN: [&str; 4] = [
    "09090909090909090909090909090909010000000000000001000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0101010102020202f8ffffff0400000001000000f0ffffff040000000000000003000000000000000400000000000000",
    "64656661756c74ff000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000010000000700000005000000000000000600000000000000",
    "0300000000000000423b982371094ff9db208e6fdd057fca13796b467e4ea86f7e11cce0ff2a3ec4",
];

#[test]
fn what_is_not_whole_is_refused() {
    let records: Vec<_> = to_records(&small(), CaKeys::With).collect();
    let read = |records: &[Vec<u8>]| from_records(records).map(drop);
    assert_eq!(read(&records[..3]), Err(SnapshotError::Whole("its end is missing")));
    assert_eq!(read(&[]), Err(SnapshotError::Whole("its end is missing")));
    assert!(matches!(read(&records[1..]), Err(SnapshotError::Whole(_))), "a record is missing");
    let twice = [records.clone(), records.clone()].concat();
    assert!(matches!(read(&twice), Err(SnapshotError::Whole(_))));
    let mut damaged = records.clone();
    damaged[1][60] ^= 1;
    assert_eq!(read(&damaged), Err(SnapshotError::Record { at: 1, cause: WireError::Checksum }));
    let mut foreign = records;
    foreign[2] = wire::encode(&fabric::rpc::Refusal::new("x", "y"));
    assert_eq!(read(&foreign), Err(SnapshotError::Unknown { at: 2, kind: 2, version: 1 }));
}

proptest! {
    #[test]
    fn arbitrary_records_never_panic(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)) {
        prop_assert!(from_records(records).is_err());
    }
}
