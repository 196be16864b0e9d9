//! The systemd unit: written from `contrib/smartnode.service`, and what was done is told.
#![expect(clippy::disallowed_methods, reason = "writes the host's unit file, which no seam covers")]

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::args::{Global, Output, ServiceCommand};
use super::error::{CliError, Exit};
use super::output;
use crate::config::DATA_DIR;

const UNIT: &str = include_str!("../../../contrib/smartnode.service");
const UNIT_NAME: &str = "smartnode.service";
const PROGRAM: &str = "/usr/local/bin/smartnode";

fn refused(what: &str, path: &Path, error: &io::Error) -> CliError {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Failed };
    let hint = match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(parent)) => format!("make the directory first: mkdir -p {}", parent.display()),
        _ => "run it as root".into(),
    };
    CliError::new(exit, format!("cannot {what} {}: {error}", path.display())).hint(hint)
}

fn say(words: &str) {
    let _ = writeln!(anstream::stderr(), "{words}");
}

/// The unit for this program, and for the data directory if it is another than usual.
fn unit(program: &Path, data_dir: Option<&Path>) -> String {
    let text = UNIT.replace(PROGRAM, &program.to_string_lossy());
    match data_dir.filter(|path| *path != Path::new(DATA_DIR)) {
        Some(path) => {
            let path = path.to_string_lossy();
            text.replace(DATA_DIR, &path).replace(" start\n", &format!(" start --data-dir \"{path}\"\n"))
        }
        None => text,
    }
}

/// Tells what was done (or would be, with the unit's text) in the shape asked for.
fn tell(global: &Global, path: &Path, words: &str, text: Option<&str>) -> Result<(), CliError> {
    match global.output {
        Output::Json | Output::Yaml => {
            let shape = json!({ "done": !global.dry_run, "unit": path, "message": words, "text": text });
            output::inspect(global.output, &shape, "")
        }
        Output::Name => output::print(&format!("{}\n", path.display())),
        Output::Table => {
            say(words);
            text.map_or(Ok(()), output::print)
        }
    }
}

/// Tells systemd, where there is one.
fn reload(directory: &Path) {
    if !directory.starts_with("/etc/systemd") && !directory.starts_with("/run/systemd") {
        return;
    }
    match Command::new("systemctl").arg("daemon-reload").status() {
        Ok(status) if status.success() => say("told systemd to read it"),
        _ => say("systemd does not answer here: it reads the unit at its next start"),
    }
}

/// `service`.
pub fn run(command: ServiceCommand, global: &Global) -> Result<(), CliError> {
    match command {
        ServiceCommand::Install(args) => {
            let path = args.unit_dir.join(UNIT_NAME);
            let program = std::env::current_exe()?;
            let data_dir = global.place.data_dir.as_deref().map(std::path::absolute).transpose()?;
            let text = unit(&program, data_dir.as_deref());
            if global.dry_run {
                return tell(global, &path, &format!("would write {}", path.display()), Some(&text));
            }
            let unchanged = std::fs::read_to_string(&path).is_ok_and(|old| old == text);
            if !unchanged {
                std::fs::write(&path, text).map_err(|error| refused("write", &path, &error))?;
            }
            let done = if unchanged { "already there:" } else { "wrote" };
            tell(global, &path, &format!("{done} {}", path.display()), None)?;
            reload(&args.unit_dir);
            say("\nnext: systemctl enable --now smartnode");
        }
        ServiceCommand::Uninstall(args) => {
            let path = args.unit_dir.join(UNIT_NAME);
            if global.dry_run {
                return tell(global, &path, &format!("would remove {}", path.display()), None);
            }
            let words = match std::fs::remove_file(&path) {
                Ok(()) => format!("removed {}", path.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => "there was no unit".to_owned(),
                Err(error) => return Err(refused("remove", &path, &error)),
            };
            tell(global, &path, &words, None)?;
            reload(&args.unit_dir);
            say("a running daemon goes on; stop it: smartnode stop");
        }
    }
    Ok(())
}
