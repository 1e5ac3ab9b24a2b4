//! What the kernel refuses a job's programs, on top of the engine's own profile: whatever no program needs for computing
//! and which has been a way out of a sandbox before, or a way to leave something for the next job.
//!
//! A call on these lists fails with an errno, as it does on a kernel that was built without it or for a user without the
//! right: programs that try it and go on without it do so here. Everything else is left to the profile that the engine
//! puts below this one. The warden puts itself under the filter once, at its start, and what it starts inherits it: for
//! each job the kernel would have to check and compile it anew. Programs for another architecture than the warden's, such as 32-bit ones on x86-64, are killed:
//! their calls have other numbers.

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// What is there to do about the machine as a whole, about other processes, and about the kernel itself: no rights.
#[rustfmt::skip]
const FORBIDDEN: &[libc::c_long] = &[
    // other processes
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_kcmp, libc::SYS_pidfd_getfd,
    // keys outlive a job, and those of a user are shared by all its sandboxes
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl,
    // programs for the kernel, and its innards
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at, libc::SYS_syslog, libc::SYS_lookup_dcookie,
    // mounts and roots
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_move_mount,
    libc::SYS_open_tree, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // namespaces
    libc::SYS_unshare, libc::SYS_setns,
    // the machine
    libc::SYS_reboot, libc::SYS_kexec_load, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
    libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct, libc::SYS_quotactl, libc::SYS_vhangup,
    libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_sethostname, libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")] libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")] libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")] libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")] libc::SYS_kexec_file_load,
];

/// What shall look as if it did not exist: programs have another way, and take it.
#[rustfmt::skip]
const MISSING: &[libc::c_long] = &[
    // its flags are behind a pointer, where a filter cannot read them; the C library falls back on clone
    libc::SYS_clone3,
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    // what lives on without a process or a file
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt,
    libc::SYS_semget, libc::SYS_semop, libc::SYS_semctl, libc::SYS_semtimedop,
    libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv, libc::SYS_msgctl,
    libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_mq_timedsend, libc::SYS_mq_timedreceive, libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
];

/// Flags of clone that make a namespace.
const NEW_NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Processes of one job may talk over these. Every other family is of no use without a network; and what the buffers of
/// connections over the loopback hold is counted by nobody where control groups have version 1: a job could take
/// so much of the machine's memory for them that the node itself has none left to talk to its peers.
const SOCKET_FAMILY: libc::c_int = libc::AF_UNIX;

/// Huge pages come out of a reserve of the machine's, and no memory limit counts them.
const HUGE_MAP: libc::c_int = libc::MAP_HUGETLB;
const HUGE_FILE: libc::c_uint = libc::MFD_HUGETLB;

/// The filters, ready to be installed.
#[derive(Debug)]
pub(crate) struct Filter {
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Builds the filters.
    pub(crate) fn new() -> Result<Self, seccompiler::Error> {
        let mut forbidden = always(FORBIDDEN);
        let namespaces = NEW_NAMESPACES
            .iter()
            .map(|flag| {
                let flag = flag.cast_unsigned().into();
                rule(vec![argument(0, SeccompCmpOp::MaskedEq(flag), flag)?])
            })
            .collect::<Result<_, _>>()?;
        forbidden.insert(libc::SYS_clone, namespaces);

        let family = SOCKET_FAMILY.cast_unsigned().into();
        let sockets = [libc::SYS_socket, libc::SYS_socketpair]
            .into_iter()
            .map(|call| {
                let other = rule(vec![argument(0, SeccompCmpOp::Ne, family)?])?;
                Ok((call, vec![other]))
            })
            .collect::<Result<_, seccompiler::Error>>()?;
        let huge =
            |index, flag: u64| rule(vec![argument(index, SeccompCmpOp::MaskedEq(flag), flag)?]);
        let huge = BTreeMap::from([
            (
                libc::SYS_mmap,
                vec![huge(3, HUGE_MAP.cast_unsigned().into())?],
            ),
            (libc::SYS_memfd_create, vec![huge(1, HUGE_FILE.into())?]),
        ]);

        Ok(Self {
            programs: vec![
                #[cfg(target_arch = "x86_64")]
                no_x32(),
                program(forbidden, Errno::PERM)?,
                program(always(MISSING), Errno::NOSYS)?,
                program(sockets, Errno::AFNOSUPPORT)?,
                program(huge, Errno::NOMEM)?,
            ],
        })
    }

    /// Puts this process, and all that come from it, under the filters.
    pub(crate) fn install(&self) -> Result<(), Errno> {
        for program in &self.programs {
            seccompiler::apply_filter(program).map_err(|error| match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => {
                    Errno::from_io_error(&error).unwrap_or(Errno::IO)
                }
                _ => Errno::INVAL,
            })?;
        }
        Ok(())
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// These calls, whatever their arguments.
fn always(calls: &[libc::c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn argument(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::Error> {
    // The kernel takes these arguments for ints: what stands in their upper half must not make a difference.
    Ok(SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(conditions)?)
}

fn program(rules: Rules, errno: Errno) -> Result<BpfProgram, seccompiler::Error> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error().cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

/// The x32 calls have the architecture of x86-64 and other numbers, so that a list of numbers does not meet them.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> BpfProgram {
    use seccompiler::sock_filter;
    const X32_BIT: u32 = 0x4000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let instruction = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        // The number is the first field of what a filter sees.
        instruction(load, 0, 0, 0),
        instruction(jump, 0, 1, X32_BIT),
        instruction(give, 0, 0, ERRNO | libc::ENOSYS.cast_unsigned()),
        instruction(give, 0, 0, ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `call` in a child process under the filters, and says with which errno it failed; 0 if it did not.
    fn under_filter(call: impl Fn() -> libc::c_long) -> i32 {
        let filter = Filter::new().unwrap();
        // SAFETY: the child makes system calls only and ends in _exit.
        match unsafe { libc::fork() } {
            0 => {
                let code = match filter.install() {
                    Err(_) => 255,
                    Ok(()) if call() < 0 => std::io::Error::last_os_error()
                        .raw_os_error()
                        .unwrap_or(254),
                    Ok(()) => 0,
                };
                // SAFETY: ends the child without running what belongs to its parent.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: waits for the child just made.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                assert!(libc::WIFEXITED(status), "ended by {status:#x}");
                libc::WEXITSTATUS(status)
            }
        }
    }

    fn call(number: libc::c_long, a: libc::c_long, b: libc::c_long, c: libc::c_long) -> i32 {
        // SAFETY: calls that fail at once, or make something that ends with the child.
        under_filter(|| unsafe { libc::syscall(number, a, b, c, 0, 0) })
    }

    fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> i32 {
        call(
            libc::SYS_socket,
            family.into(),
            kind.into(),
            protocol.into(),
        )
    }

    #[test]
    fn what_is_on_the_lists_fails_with_its_errno() {
        for number in FORBIDDEN {
            assert_eq!(call(*number, 0, 0, 0), libc::EPERM, "call {number}");
        }
        for number in MISSING {
            assert_eq!(call(*number, 0, 0, 0), libc::ENOSYS, "call {number}");
        }
    }

    #[test]
    fn no_namespace_comes_from_clone() {
        for flag in NEW_NAMESPACES {
            let flags = libc::c_long::from(flag | libc::SIGCHLD);
            assert_eq!(call(libc::SYS_clone, flags, 0, 0), libc::EPERM, "{flag:#x}");
            // Whatever the kernel does not look at.
            let dressed = flags | 0x1_0000_0000;
            assert_eq!(
                call(libc::SYS_clone, dressed, 0, 0),
                libc::EPERM,
                "{flag:#x}"
            );
        }
    }

    #[test]
    fn sockets_are_those_within_the_machine() {
        assert_eq!(socket(libc::AF_UNIX, libc::SOCK_STREAM, 0), 0);
        assert_eq!(socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0), 0);
        for family in [
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
            libc::AF_PACKET,
            libc::AF_VSOCK,
            libc::AF_ALG,
            libc::AF_BLUETOOTH,
        ] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW] {
                assert_eq!(socket(family, kind, 0), libc::EAFNOSUPPORT, "{family}");
            }
        }
    }

    #[test]
    fn pages_are_of_the_usual_size() {
        let map = |flags: libc::c_int| {
            let flags = libc::c_long::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
            // SAFETY: maps a page of its own in the child.
            under_filter(|| unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, 0, flags, -1, 0) })
        };
        assert_eq!(map(0), 0);
        assert_eq!(map(libc::MAP_HUGETLB), libc::ENOMEM);
        let name = c"x".as_ptr() as libc::c_long;
        assert_eq!(call(libc::SYS_memfd_create, name, 0, 0), 0);
        let huge = libc::c_long::from(libc::MFD_HUGETLB);
        assert_eq!(call(libc::SYS_memfd_create, name, huge, 0), libc::ENOMEM);
    }

    #[test]
    fn the_rest_is_left_alone() {
        assert_eq!(call(libc::SYS_getpid, 0, 0, 0), 0);
        assert_eq!(call(libc::SYS_sched_yield, 0, 0, 0), 0);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn x32_is_no_way_round() {
        let number = libc::SYS_getpid | 0x4000_0000;
        assert_eq!(call(number, 0, 0, 0), libc::ENOSYS);
    }
}
