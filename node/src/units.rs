//! What people type: sizes, cores, durations, `K=V`, published ports, addresses. Pure; the reverse of `fabric::human`.

use std::time::Duration;

use thiserror::Error;

use crate::api::types::Publish;

/// Why a text was not understood.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{value:?} is not {what}")]
pub struct NotUnderstood {
    value: String,
    what: &'static str,
}

fn refuse(text: &str, what: &'static str) -> NotUnderstood {
    NotUnderstood { value: text.chars().take(80).collect(), what }
}

/// Splits `1.5GiB` into 1.5 in thousandths and its unit. At most three decimals, so that nothing is rounded.
fn number_and_unit(text: &str) -> Option<(u128, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.len() > 3 || whole.len() > 15 {
        return None;
    }
    let thousandths = format!("{decimals:0<3}").parse::<u128>().ok()?;
    Some((whole.parse::<u128>().ok()? * 1000 + thousandths, unit))
}

/// `256MiB`, `1.5GiB`, `4096` (bytes).
///
/// # Errors
/// For another unit or a number that is none.
pub fn size(text: &str) -> Result<u64, NotUnderstood> {
    let refused = || refuse(text, "a size: write it as 256MiB, 1.5GiB or a number of bytes");
    let (thousandths, unit) = number_and_unit(text).ok_or_else(refused)?;
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(refused()),
    };
    let scaled = thousandths << shift;
    if scaled % 1000 != 0 && shift == 0 {
        return Err(refused());
    }
    u64::try_from(scaled / 1000).map_err(|_| refused())
}

/// `0.5`, `2`: cores, as thousandths.
///
/// # Errors
/// For what is no number with at most three decimals.
pub fn cpu_millis(text: &str) -> Result<u32, NotUnderstood> {
    let refused = || refuse(text, "a number of cores: write it as 0.5 or 2");
    let (thousandths, unit) = number_and_unit(text).ok_or_else(refused)?;
    if !unit.is_empty() {
        return Err(refused());
    }
    u32::try_from(thousandths).map_err(|_| refused())
}

/// `500ms`, `30s`, `1h30m`, `2d`.
///
/// # Errors
/// For a number without a unit, an unknown unit, or more than a hundred years.
pub fn duration(text: &str) -> Result<Duration, NotUnderstood> {
    let refused = || refuse(text, "a duration: write it as 500ms, 30s, 10m, 1h30m or 2d");
    let mut rest = text;
    let mut millis: u128 = 0;
    while !rest.is_empty() {
        let (thousandths, tail) = number_and_unit(rest).ok_or_else(refused)?;
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let unit: u128 = match &tail[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refused()),
        };
        millis += thousandths * unit / 1000;
        rest = &tail[end..];
    }
    if text.is_empty() || millis > 36_500 * 86_400_000 {
        return Err(refused());
    }
    Ok(Duration::from_millis(millis as u64))
}

/// `K=V`; the value may be empty and may hold further `=`.
///
/// # Errors
/// Without `=` or with an empty key.
pub fn key_value(text: &str) -> Result<(String, String), NotUnderstood> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(refuse(text, "of the form KEY=VALUE")),
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// `8080:80`, `127.0.0.1:8080:80`, `[::1]:8080:80`.
///
/// # Errors
/// For another shape, or a port outside 1 to 65535.
pub fn publish(text: &str) -> Result<Publish, NotUnderstood> {
    let refused = || refuse(text, "a published port: write it as HOST:PORT or IP:HOST:PORT, ports 1 to 65535");
    let (rest, machine_port) = text.rsplit_once(':').ok_or_else(refused)?;
    let (ip, host_port) = match rest.rsplit_once(':') {
        Some((ip, host_port)) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
            let ip: std::net::IpAddr = bare.parse().map_err(|_| refused())?;
            (Some(ip.to_string()), host_port)
        }
        None => (None, rest),
    };
    let host_port = port(host_port).ok_or_else(refused)?;
    Ok(Publish { ip, host_port, machine_port: port(machine_port).ok_or_else(refused)? })
}

/// `8080:80` or `80` for `forward`: (local, of the machine); local 0 picks a free one.
///
/// # Errors
/// For another shape, or a machine's port outside 1 to 65535.
pub fn forward(text: &str) -> Result<(u16, u16), NotUnderstood> {
    let refused = || refuse(text, "a port to forward: write it as PORT or LOCAL:PORT");
    match text.split_once(':') {
        Some((local, remote)) => Ok((local.parse().map_err(|_| refused())?, port(remote).ok_or_else(refused)?)),
        None => port(text).map(|port| (port, port)).ok_or_else(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_type_is_understood() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(cpu_millis("0.5"), Ok(500));
        assert_eq!(cpu_millis("2"), Ok(2000));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(forward("80"), Ok((80, 80)));
        assert_eq!(forward("0:80"), Ok((0, 80)));
        let published = publish("[::1]:8080:80").unwrap();
        assert_eq!((published.ip.as_deref(), published.host_port, published.machine_port), (Some("::1"), 8080, 80));
        assert_eq!(publish("8080:80").unwrap().ip, None);
    }

    #[test]
    fn what_is_ambiguous_or_wrong_is_refused_with_the_value() {
        for bad in ["", "MiB", "1MB", "1.2345GiB", "-1", "1 2", "0.5", "99999999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["", "5", "1y", "s", "1h30", "999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "x", "1.0001", "0.5c"] {
            assert!(cpu_millis(bad).is_err(), "{bad}");
        }
        for bad in ["", "80", "0:80", "80:0", "x:80:80", "1:2:3:4", "70000:80"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
        assert!(key_value("novalue").unwrap_err().to_string().contains("novalue"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (size(&text), cpu_millis(&text), duration(&text), key_value(&text), publish(&text), forward(&text));
        }

        #[test]
        fn a_written_number_is_read_back(bytes in 0u64..1_000_000_000_000_000, millis in 0u64..=3_153_600_000_000, key in "[a-z]{1,9}", value in ".{0,9}") {
            prop_assert_eq!(size(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(duration(&format!("{millis}ms")), Ok(Duration::from_millis(millis)));
            prop_assert_eq!(key_value(&format!("{key}={value}")), Ok((key, value)));
        }
    }
}
