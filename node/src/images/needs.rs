//! What a program needs beside itself: its interpreter and shared libraries, read from its file and from the host's
//! library cache. Nothing is executed (`ldd` would run the program's own loader).
//!
//! Pure over bytes; finding the libraries on the host is `pack`'s work.

use goblin::elf::Elf;

use super::limits::LIBRARIES_MAX;

/// Where the loader of common distributions looks when nothing else says so.
pub const DEFAULT_DIRS: [&str; 12] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib64",
    "/usr/local/lib",
    "/lib32",
    "/usr/lib32",
];

/// Class and machine of an ELF file: a library must match its user in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abi {
    class: u8,
    machine: u16,
}

/// Reads the ABI from the first bytes of a file; none when it is no ELF file.
pub fn abi(head: &[u8]) -> Option<Abi> {
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return None;
    }
    let machine = [head[18], head[19]];
    let machine = if head[5] == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    Some(Abi { class: head[4], machine })
}

/// What an ELF file says it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Its ABI.
    pub abi: Abi,
    /// The dynamic loader, for a program.
    pub interpreter: Option<String>,
    /// Names of libraries, or paths when they hold a slash.
    pub libraries: Vec<String>,
    /// Directories to search first, `$ORIGIN` and the like not replaced yet.
    pub search: Vec<String>,
}

/// Reads an ELF file; none when it is not one, or one that says nothing (static, or damaged).
pub fn needs(file: &[u8]) -> Option<Needs> {
    let abi = abi(file)?;
    let elf = Elf::parse(file).ok()?;
    let split = |paths: &[&str]| {
        let dirs = paths.iter().flat_map(|path| path.split(':'));
        dirs.filter(|dir| !dir.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    // RPATH counts only where there is no RUNPATH.
    let search = if elf.runpaths.is_empty() { split(&elf.rpaths) } else { split(&elf.runpaths) };
    Some(Needs {
        abi,
        interpreter: elf.interpreter.map(str::to_owned),
        libraries: elf.libraries.iter().take(LIBRARIES_MAX).map(|name| (*name).to_owned()).collect(),
        search,
    })
}

/// Replaces what the loader replaces in a search directory; none when it cannot be known.
pub fn expand(dir: &str, origin: &str) -> Option<String> {
    let lib = if cfg!(target_pointer_width = "64") { "lib64" } else { "lib" };
    let mut out = dir.to_owned();
    for (token, value) in [("ORIGIN", origin), ("LIB", lib), ("PLATFORM", std::env::consts::ARCH)] {
        out = out.replace(&format!("${{{token}}}"), value).replace(&format!("${token}"), value);
    }
    (out.starts_with('/') && !out.contains('$')).then_some(out)
}

/// `#!`: the interpreter and its one argument.
pub fn script(head: &[u8]) -> Option<(String, Option<String>)> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line.get(..line.len().min(1024))?).ok()?.trim();
    let (program, argument) = match line.split_once(char::is_whitespace) {
        Some((program, argument)) => (program, Some(argument.trim().to_owned())),
        None => (line, None),
    };
    program.starts_with('/').then(|| (program.to_owned(), argument))
}

/// The program that `env` is asked for in a `#!` line: the first word that is neither a flag nor an assignment.
pub fn env_program(argument: &str) -> Option<&str> {
    argument.split_whitespace().find(|word| !word.starts_with('-') && !word.contains('='))
}

/// `(name, path)` of every entry of `/etc/ld.so.cache` (the format of glibc 2.2 and later), in its order.
pub fn library_cache(bytes: &[u8]) -> Vec<(&str, &str)> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    let Some(start) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) else { return Vec::new() };
    let cache = &bytes[start..];
    let word = |at: usize| -> Option<usize> {
        let word = cache.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize)
    };
    let text = |at: usize| -> Option<&str> {
        let rest = cache.get(at..)?;
        std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()
    };
    let count = word(MAGIC.len()).unwrap_or(0).min(cache.len() / ENTRY);
    let entry = |index: usize| {
        let at = HEADER + index * ENTRY;
        Some((text(word(at + 4)?)?, text(word(at + 8)?)?))
    };
    (0..count).filter_map(entry).filter(|(_, path)| path.starts_with('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache() -> Vec<u8> {
        let mut out = b"glibc-ld.so.cache1.1".to_vec();
        let strings = b"libc.so.6\0/lib/libc.so.6\0";
        out.extend(1u32.to_le_bytes());
        out.extend((strings.len() as u32).to_le_bytes());
        out.resize(48, 0);
        for word in [1u32, 72, 82, 0, 0, 0] {
            out.extend(word.to_le_bytes());
        }
        out.extend(strings);
        out
    }

    #[test]
    fn the_library_cache_is_read() {
        assert_eq!(library_cache(&cache()), [("libc.so.6", "/lib/libc.so.6")]);
        assert_eq!(library_cache(b"something else"), []);
    }

    #[test]
    fn scripts_name_their_interpreter() {
        assert_eq!(script(b"#!/bin/sh\necho"), Some(("/bin/sh".into(), None)));
        assert_eq!(
            script(b"#! /usr/bin/env -S python3 -u\n"),
            Some(("/usr/bin/env".into(), Some("-S python3 -u".into())))
        );
        assert_eq!(env_program("-S A=b python3 -u"), Some("python3"));
        assert_eq!(script(b"#!python\n"), None);
        assert_eq!(script(b"\x7fELF"), None);
    }

    #[test]
    fn search_directories_are_expanded_as_the_loader_does() {
        assert_eq!(expand("$ORIGIN/../lib", "/opt/x/bin").unwrap(), "/opt/x/bin/../lib");
        assert_eq!(expand("${ORIGIN}", "/opt").unwrap(), "/opt");
        assert_eq!(expand("relative", "/opt"), None);
        assert_eq!(expand("/a/$OTHER", "/opt"), None);
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..140) {
            let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
            elf.extend(&bytes);
            let _ = needs(&elf);
            let _ = script(&bytes);
            let mut damaged = cache();
            damaged.truncate(cut);
            damaged.extend(&bytes);
            let _ = library_cache(&damaged);
        }
    }
}
