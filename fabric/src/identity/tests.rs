use super::*;
use crate::model::Role;
use crate::seams::real::{Directory, KernelEntropy};

const NOW: Duration = Duration::from_secs(1_790_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TTL: Duration = Duration::from_secs(30 * 24 * 3600);

fn ca() -> CaKey {
    CaKey::generate(&KernelEntropy, NOW)
}

fn trusting(ca: &CaKey) -> Trust {
    Trust::new([ca.cert_der().to_vec()]).unwrap()
}

fn key() -> NodeKey {
    NodeKey::generate(&KernelEntropy)
}

#[test]
fn a_certificate_tells_who_a_node_is() {
    let (ca, key) = (ca(), key());
    let certificate = ca.issue(&key.public_key(), Role::Worker, NOW, TTL);
    assert_eq!(certificate, ca.issue(&key.public_key(), Role::Worker, NOW, TTL), "issuing is deterministic");
    let peer = trusting(&ca).verify(&certificate, NOW).unwrap();
    assert_eq!((peer.id, peer.role), (key.id(), Role::Worker));
}

#[test]
fn another_clusters_certificate_is_refused() {
    let certificate = ca().issue(&key().public_key(), Role::Voter, NOW, TTL);
    assert!(matches!(trusting(&ca()).verify(&certificate, NOW), Err(IdentityError::Untrusted)));
}

#[test]
fn age_is_judged_by_the_time_that_is_passed_in() {
    let ca = ca();
    let certificate = ca.issue(&key().public_key(), Role::Voter, NOW, TTL);
    let trust = trusting(&ca);
    assert!(trust.verify(&certificate, NOW - Duration::from_secs(60)).is_ok(), "clocks differ a little");
    assert!(matches!(trust.verify(&certificate, NOW - 2 * DAY), Err(IdentityError::NotYetValid(_))));
    assert!(matches!(trust.verify(&certificate, NOW + TTL + DAY), Err(IdentityError::Expired(ago)) if ago == DAY));
    assert!(trust.verify_any_age(&certificate).is_ok());
}

#[test]
fn a_ca_certificate_is_no_node() {
    let ca = ca();
    assert!(matches!(trusting(&ca).verify(ca.cert_der(), NOW), Err(IdentityError::Malformed(_))));
}

#[test]
fn every_changed_byte_of_a_certificate_is_refused_and_none_panics() {
    let ca = ca();
    let certificate = ca.issue(&key().public_key(), Role::Voter, NOW, TTL);
    let trust = trusting(&ca);
    for at in 0..certificate.len() {
        let mut bad = certificate.clone();
        bad[at] ^= 0x11;
        assert!(trust.verify(&bad, NOW).is_err(), "byte {at}");
        assert!(trust.verify(&certificate[..at], NOW).is_err(), "cut at {at}");
    }
}

#[test]
fn a_removed_node_is_refused_and_forgeries_remove_nobody() {
    let (ca, key) = (ca(), key());
    let certificate = ca.issue(&key.public_key(), Role::Voter, NOW, TTL);
    let mut trust = trusting(&ca);
    let before = trust.digest();
    let forged = self::ca().tombstone(key.id(), 7);
    assert!(matches!(trust.merge([forged]), Err(IdentityError::ForgedTombstone(_))));
    let stone = ca.tombstone(key.id(), 7);
    assert_eq!(trust.merge([stone.clone()]).unwrap(), 1);
    assert_eq!(trust.merge([stone]).unwrap(), 0);
    assert_ne!(trust.digest(), before);
    assert!(matches!(trust.verify(&certificate, NOW), Err(IdentityError::Removed(id)) if id == key.id()));
}

#[test]
fn what_is_saved_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Directory::open(directory.path()).unwrap();
    let key = NodeKey::load_or_generate(&disk, &KernelEntropy).unwrap();
    assert_eq!(NodeKey::load_or_generate(&disk, &KernelEntropy).unwrap().id(), key.id());

    let ca = ca();
    let mut trust = trusting(&ca);
    trust.merge([ca.tombstone(self::key().id(), 9)]).unwrap();
    trust.save(&disk).unwrap();
    assert_eq!(Trust::load(&disk).unwrap().unwrap().digest(), trust.digest());

    let certificate = ca.issue(&key.public_key(), Role::Voter, NOW, TTL);
    Credentials::new(key.clone(), certificate, ca.cert_der().to_vec()).unwrap().save(&disk).unwrap();
    let credentials = Credentials::load(&disk, key).unwrap().unwrap();
    assert_eq!(credentials.role(), Role::Voter);
    assert!(!credentials.renewal_due(NOW + 19 * DAY));
    assert!(credentials.renewal_due(NOW + 21 * DAY));
}

#[test]
fn a_ca_survives_the_ledger_and_its_parts_must_fit() {
    let ca = ca();
    let again = CaKey::from_parts(ca.cert_der().to_vec(), &ca.key_pkcs8()).unwrap();
    assert_eq!(again.fingerprint(), ca.fingerprint());
    assert!(CaKey::from_parts(ca.cert_der().to_vec(), &self::ca().key_pkcs8()).is_err());
    assert!(CaKey::from_parts(ca.cert_der().to_vec(), b"nonsense").is_err());
}

#[test]
fn credentials_of_another_key_are_refused() {
    let ca = ca();
    let certificate = ca.issue(&key().public_key(), Role::Voter, NOW, TTL);
    let error = Credentials::new(key(), certificate, ca.cert_der().to_vec()).unwrap_err();
    assert!(matches!(error, IdentityError::OtherNode { .. }));
}

#[test]
fn a_ca_survives_its_pem_file() {
    let (one, other) = (ca(), ca());
    let trust = Trust::new([one.cert_der().to_vec(), other.cert_der().to_vec()]).unwrap();
    let text = trust.to_pem();
    let again = Trust::from_pem(&format!("a comment\n{text}")).unwrap();
    assert_eq!(again.cas().collect::<Vec<_>>(), [one.cert_der(), other.cert_der()]);
    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Trust::from_pem(bad).is_err(), "{bad:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_certificate_and_no_pem_file_panics(
        der in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        text in "(-----BEGIN CERTIFICATE-----\n)?[A-Za-z0-9+/=\n -]{0,200}(\n-----END CERTIFICATE-----)?",
    ) {
        let trust = trusting(&ca());
        proptest::prop_assert!(trust.verify(&der, NOW).is_err());
        proptest::prop_assert!(Trust::new([der]).is_err());
        let _ = Trust::from_pem(&text);
    }
}
