//! Limits on what a user or peer may ask for. Pure; the same checks guard the API and the state machine.

use std::net::IpAddr;

use thiserror::Error;

use super::{Labels, MachineSpec};
use crate::limits::*;

/// A field of a request that breaks a rule.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{field} is {value}: {rule}")]
pub struct Invalid {
    /// Path of the field, as in the JSON.
    pub field: &'static str,
    /// The offending value, shortened.
    pub value: String,
    /// What is allowed.
    pub rule: String,
}

fn invalid(field: &'static str, value: impl ToString, rule: impl Into<String>) -> Invalid {
    Invalid { field, value: value.to_string().chars().take(80).collect(), rule: rule.into() }
}

fn at_most(field: &'static str, have: usize, max: usize, what: &str) -> Result<(), Invalid> {
    if have <= max {
        Ok(())
    } else {
        Err(invalid(field, format!("{have} {what}"), format!("at most {max} are allowed")))
    }
}

/// What names in files, paths and selectors are made of.
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_./".contains(&byte)
}

/// A failure domain; an empty one is none.
///
/// # Errors
/// When it is too long or has other characters than a label's key.
pub fn zone(zone: &str) -> Result<(), Invalid> {
    if zone.len() <= ZONE_BYTES_MAX && zone.bytes().all(plain) {
        return Ok(());
    }
    Err(invalid("zone", format!("{zone:?}"), "a zone has at most 63 of A-Z, a-z, 0-9, -, _, . and /"))
}

/// Labels: how many, how long, and of what characters.
///
/// # Errors
/// Names the first label that breaks a rule.
pub fn labels(labels: &Labels) -> Result<(), Invalid> {
    at_most("labels", labels.len(), LABELS_MAX, "labels")?;
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !key.bytes().all(plain) {
            return Err(invalid("labels", format!("{key:?}"), "a key has 1 to 63 of A-Z, a-z, 0-9, -, _, . and /"));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(invalid("labels", format!("{key}={value:?}"), "a value has at most 255 printable bytes"));
        }
    }
    Ok(())
}

/// A machine's spec.
///
/// # Errors
/// Names the first field that breaks a rule.
pub fn spec(spec: &MachineSpec) -> Result<(), Invalid> {
    if !spec.image.is_valid() {
        return Err(invalid("image", format!("{:?}", spec.image), "a name of an image"));
    }
    texts("command", &spec.command, COMMAND_ARGS_MAX, COMMAND_BYTES_MAX)?;
    if spec.command.first().is_some_and(String::is_empty) {
        return Err(invalid("command", "empty", "the program needs a name"));
    }
    environment(&spec.env)?;
    resources(spec)?;
    labels(&spec.labels)?;
    at_most("publish", spec.publish.len(), PUBLISH_MAX, "ports")?;
    for (at, port) in spec.publish.iter().enumerate() {
        if port.host_port == 0 || port.machine_port == 0 {
            return Err(invalid(
                "publish",
                format!("{}:{}", port.host_port, port.machine_port),
                "ports are 1 to 65535",
            ));
        }
        let same = |other: &super::Publish| other.host_port == port.host_port && share_address(other.ip, port.ip);
        if spec.publish[..at].iter().any(same) {
            let rule = "a port is published once at an address; none, 0.0.0.0 and :: mean all of them";
            return Err(invalid("publish", port.host_port, rule));
        }
    }
    Ok(())
}

/// Whether published ports of one number meet at these addresses of a host. None and the unspecified addresses mean all.
pub fn share_address(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let named = |ip: Option<IpAddr>| ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified());
    match (named(one), named(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

fn texts(field: &'static str, items: &[String], max: usize, bytes_max: usize) -> Result<(), Invalid> {
    at_most(field, items.len(), max, "items")?;
    at_most(field, items.iter().map(String::len).sum(), bytes_max, "bytes")?;
    match items.iter().find(|text| text.contains('\0')) {
        Some(text) => Err(invalid(field, format!("{text:?}"), "zero bytes are not allowed")),
        None => Ok(()),
    }
}

fn environment(env: &[(String, String)]) -> Result<(), Invalid> {
    at_most("env", env.len(), ENV_MAX, "variables")?;
    at_most("env", env.iter().map(|(k, v)| k.len() + v.len()).sum(), ENV_BYTES_MAX, "bytes")?;
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("env", format!("{key}={value}"), "a name without = and no zero bytes"));
        }
    }
    Ok(())
}

fn resources(spec: &MachineSpec) -> Result<(), Invalid> {
    let r = &spec.resources;
    if !(1..=1_024_000).contains(&r.cpu_millis) {
        return Err(invalid("cpu", f64::from(r.cpu_millis) / 1000.0, "0.001 to 1024 cores"));
    }
    if !((4 << 20)..=(64 << 40)).contains(&r.memory_bytes) {
        return Err(invalid("memory", r.memory_bytes, "4 MiB to 64 TiB"));
    }
    if r.burst_cpu_millis.is_some_and(|burst| burst < r.cpu_millis || burst > 1_024_000) {
        return Err(invalid(
            "burst_cpu",
            r.burst_cpu_millis.unwrap_or(0),
            "at least the guarantee, at most 1024 cores",
        ));
    }
    if r.burst_memory_bytes.is_some_and(|burst| burst < r.memory_bytes || burst > (64 << 40)) {
        return Err(invalid(
            "burst_memory",
            r.burst_memory_bytes.unwrap_or(0),
            "at least the guarantee, at most 64 TiB",
        ));
    }
    if !(1..=1_000_000).contains(&r.pids_max) {
        return Err(invalid("pids_max", r.pids_max, "1 to 1000000"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Resources, Restart};

    fn good() -> MachineSpec {
        MachineSpec {
            image: "shell".parse().unwrap(),
            command: vec!["/bin/sh".into()],
            env: vec![("A".into(), "b".into())],
            resources: Resources::default(),
            publish: vec![],
            labels: Labels::new(),
            exclusive: false,
            restart: Restart::Always,
            pinned: None,
        }
    }

    #[test]
    fn a_plain_spec_passes() {
        assert_eq!(spec(&good()), Ok(()));
    }

    #[test]
    fn each_broken_rule_names_its_field() {
        type Breaker = fn(&mut MachineSpec);
        let cases: [(&str, Breaker); 8] = [
            ("command", |s| s.command = vec!["x".into(); 257]),
            ("command", |s| s.command = vec!["a\0b".into()]),
            ("env", |s| s.env = vec![("A=B".into(), String::new())]),
            ("cpu", |s| s.resources.cpu_millis = 0),
            ("memory", |s| s.resources.memory_bytes = 1),
            ("burst_memory", |s| s.resources.burst_memory_bytes = Some(1)),
            ("labels", |s| drop(s.labels.insert("bad key".into(), "v".into()))),
            ("publish", |s| s.publish = vec![super::super::Publish { ip: None, host_port: 0, machine_port: 1 }]),
        ];
        for (field, break_it) in cases {
            let mut broken = good();
            break_it(&mut broken);
            assert_eq!(spec(&broken).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_port_is_published_once_at_an_address() {
        let at = |ip: &str| (!ip.is_empty()).then(|| ip.parse().unwrap());
        for (one, other, meet) in [
            ("", "", true),
            ("", "10.0.0.1", true),
            ("0.0.0.0", "10.0.0.1", true),
            ("10.0.0.1", "::", true),
            ("0.0.0.0", "::", true),
            ("::ffff:0.0.0.0", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::1", false),
        ] {
            assert_eq!(share_address(at(one), at(other)), meet, "{one} and {other}");
            let port = |ip| super::super::Publish { ip, host_port: 8080, machine_port: 80 };
            let twice = MachineSpec { publish: vec![port(at(one)), port(at(other))], ..good() };
            assert_eq!(spec(&twice).is_err(), meet, "{one} and {other} of one machine");
        }
    }

    #[test]
    fn a_zone_is_a_plain_word() {
        let long = "z".repeat(64);
        for (text, good) in
            [("", true), ("eu-1/rack_2.b", true), ("rack 1", false), ("zürich", false), (long.as_str(), false)]
        {
            assert_eq!(zone(text).is_ok(), good, "{text:?}");
        }
    }
}
