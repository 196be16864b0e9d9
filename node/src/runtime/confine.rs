//! What a machine's programs may not do: capabilities, system calls, resource limits. Applied just before exec.
#![expect(clippy::disallowed_methods, reason = "writes /proc/self, which is the kernel and not the data directory")]

use std::collections::BTreeMap;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::limits::{OOM_SCORE_ADJ, OPEN_FILES_MAX};
use super::sys;

/// What root inside may do, within its own user namespace: Docker's default set without mknod, which a user namespace
/// refuses anyway. Numbers from `linux/capability.h`.
const CAPABILITIES: [u32; 13] = [
    0,  // chown
    1,  // dac_override
    3,  // fowner
    4,  // fsetid
    5,  // kill
    6,  // setgid
    7,  // setuid
    8,  // setpcap
    10, // net_bind_service
    13, // net_raw
    18, // sys_chroot
    29, // audit_write
    31, // setfcap
];

/// System calls that reach parts of the kernel that a machine has no business in. The user namespace refuses most of them
/// too; this is the second lock, and it makes the kernel's own bugs there unreachable.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

fn when(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
}

/// The programs of the filter. A filter has one answer, so there is one per answer.
fn programs() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, vec![])).collect();
    let namespaces = NEW_NAMESPACES.iter().map(|flag| when(0, SeccompCmpOp::MaskedEq(*flag as u64), *flag as u64));
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    // Puts characters into the input of a terminal that somebody else reads.
    rules.insert(libc::SYS_ioctl, vec![when(1, SeccompCmpOp::Eq, libc::TIOCSTI)?]);
    // The flags of clone3 are behind a pointer: "no such call" makes the C library fall back to clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let mut programs = vec![filter(rules, libc::EPERM)?, filter(clone3, libc::ENOSYS)?];
    if cfg!(target_arch = "x86_64") {
        programs.push(no_x32());
    }
    Ok(programs)
}

/// Refuses the numbers of the x32 interface: the same calls with a bit more, which a deny list of numbers would miss.
fn no_x32() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let op = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    vec![
        op(LOAD_WORD, 0, 0),
        op(JUMP_IF_AT_LEAST, 1, X32),
        op(RETURN, 0, ALLOW),
        op(RETURN, 0, ERRNO | libc::ENOSYS as u32),
    ]
}

/// Resource limits: lowered where a default is too generous, never above what this process has.
fn limit_resources() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(OPEN_FILES_MAX);
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// The kernel ends machines before the fabric when the host is out of memory. Raising needs no privilege.
fn volunteer_for_oom() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    if now < OOM_SCORE_ADJ {
        // Having changed its user, a process may write its own files only when it says that it has no secrets.
        let _ = nix::sys::prctl::set_dumpable(true);
        let _ = std::fs::write(FILE, OOM_SCORE_ADJ.to_string());
    }
}

/// Confines this process and what it will execute. Nothing of this can be undone.
///
/// # Errors
/// Names what the kernel refused.
pub fn confine() -> io::Result<()> {
    let named = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    volunteer_for_oom();
    limit_resources().map_err(named("resource limits"))?;
    let programs = programs().map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    sys::limit_capabilities(CAPABILITIES.iter().fold(0, |set, bit| set | (1 << bit))).map_err(named("capabilities"))?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| named("no_new_privs")(errno.into()))?;
    for program in &programs {
        seccompiler::apply_filter(program).map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit_the_kernel() {
        let programs = programs().unwrap();
        assert!(programs.iter().all(|program| !program.is_empty() && program.len() < 4096));
    }
}
