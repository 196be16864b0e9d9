//! Named admin ports of other clusters, so that a user need not repeat address, CA, token file and tenant.
//!
//! They are tables of `contexts.toml` in the user's configuration directory. A flag (or its environment variable) goes
//! before what the context says.
#![expect(clippy::disallowed_methods, reason = "reads the user's own configuration, which no seam covers")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use serde::Deserialize;

use super::args::Global;
use super::error::{CliError, Exit};
use crate::api::client::Address;

/// Largest file of contexts.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// One context.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    admin: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    tenant: Option<String>,
}

/// Where contexts are, for this user.
fn path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(directory.join("smartnode/contexts.toml"))
}

/// Adds what the context says to the flags that were not given.
///
/// # Errors
/// `usage` when there is no such context, or the file is not understood.
pub fn apply(global: Global) -> Result<Global, CliError> {
    let Some(name) = global.context.clone() else { return Ok(global) };
    let path = path().ok_or_else(|| CliError::new(Exit::Usage, "without HOME there are no contexts"))?;
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| {
        CliError::new(Exit::Usage, format!("cannot read the contexts in {}: {error}", path.display()))
            .hint(format!("write there: [{name}], admin = \"https://HOST:7421\", ca = \"FILE\", token_file = \"FILE\""))
    })?;
    merge(global, &name, &text).map_err(|words| CliError::new(Exit::Usage, format!("{}: {words}", path.display())))
}

fn merge(mut global: Global, name: &str, text: &str) -> Result<Global, String> {
    let mut contexts: BTreeMap<String, Context> =
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let known = contexts.keys().cloned().collect::<Vec<_>>().join(", ");
    let context = contexts.remove(name).ok_or_else(|| format!("there is no context {name:?}, but: {known}"))?;
    let admin = context.admin.map(|text| text.parse::<Address>().map_err(|error| error.to_string())).transpose()?;
    // Another port's CA and token are no use to the one that was named.
    if global.admin.is_none() {
        global.admin = admin;
        global.ca = global.ca.or(context.ca);
        global.token_file = global.token_file.or(context.token_file);
    }
    global.tenant = global.tenant.or(context.tenant);
    Ok(global)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::Cli;

    const TEXT: &str = "[lab]\nadmin = \"https://10.0.0.1:7421\"\nca = \"/ca.pem\"\ntenant = \"acme\"\n[other]\n";

    fn global(flags: &[&str]) -> Global {
        Cli::try_parse_from([&["smartnode", "version"][..], flags].concat()).unwrap().global
    }

    #[test]
    fn a_context_fills_in_what_no_flag_says() {
        let merged = merge(global(&[]), "lab", TEXT).unwrap();
        assert_eq!(merged.admin, Some(Address::Tls("10.0.0.1:7421".into())));
        assert_eq!((merged.ca, merged.tenant.as_deref()), (Some("/ca.pem".into()), Some("acme")));
        let merged = merge(global(&["--tenant", "t", "--admin", "unix:/a"]), "lab", TEXT).unwrap();
        assert_eq!((merged.ca, merged.tenant.as_deref()), (None, Some("t")));
    }

    #[test]
    fn a_context_that_is_not_there_names_those_that_are() {
        assert!(merge(global(&[]), "none", TEXT).unwrap_err().contains("lab, other"));
        assert!(merge(global(&[]), "lab", "[lab]\nadmn = \"x\"").unwrap_err().contains("admn"));
        assert!(merge(global(&[]), "lab", "[lab]\nadmin = \"x\"").unwrap_err().contains("https://"));
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "(?s)(\\[lab\\]\n)?.{0,100}") {
            let _ = merge(global(&[]), "lab", &text);
        }
    }
}
