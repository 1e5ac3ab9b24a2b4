//! The network: there is none, not even this machine's own.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::fixture::{After, Job, small};

const PREPARE: &str = r#"
import errno, os, socket, sys
def attempt(what, call):
    try:
        print(what, "done", call())
    except OSError as error:
        print(what, errno.errorcode.get(error.errno, error))
"#;

fn python(program: &str) -> Job {
    Job::python(format!("{PREPARE}{program}"))
}

#[test]
fn there_is_no_interface_but_the_loopback() {
    small(|sandbox| {
        let attack = r#"
print(sorted(os.listdir("/sys/class/net")))
print([line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line])
"#;
        let printed = sandbox.attack_prints(After::Kept, &python(attack));
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[..2], ["['lo']", "['lo']"], "{printed}");
    });
}

/// That each line ends with one of these: as from a network in which there is nobody, or as from a machine on which there is
/// no network to ask.
#[track_caller]
fn assert_nobody(printed: &str) {
    let ends = [
        "ECONNREFUSED",
        "ENETUNREACH",
        "EADDRNOTAVAIL",
        "EAFNOSUPPORT",
        "EPERM",
        "EACCES",
    ];
    assert!(!printed.is_empty());
    for line in printed.lines() {
        assert!(ends.iter().any(|end| line.ends_with(end)), "{printed}");
    }
}

#[test]
fn there_is_no_way_to_anywhere() {
    small(|sandbox| {
        // Connecting a datagram socket looks for a route and sends nothing; the addresses are those for examples.
        let attack = r#"
print(len(open("/proc/net/route").readlines()))
if os.path.exists("/proc/net/ipv6_route"):
    print({line.split()[-1] for line in open("/proc/net/ipv6_route")} - {"lo"})
for family, address in [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"), (socket.AF_INET, "172.17.0.1"),
                        (socket.AF_INET, "169.254.169.254")]:
    def connect():
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((address, 53))
    attempt(address, connect)
"#;
        let printed = sandbox.attack_prints(After::Kept, &python(attack));
        let (head, ways) = printed
            .split_once("192.0.2.1")
            .expect("the first of the ways");
        assert!(head == "1\nset()\n" || head == "1\n", "{printed}");
        assert_nobody(&format!("192.0.2.1{ways}"));
    });
}

#[test]
fn the_interfaces_cannot_be_changed() {
    small(|sandbox| {
        let attack = r#"
import fcntl, struct
SIOCSIFADDR, SIOCSIFFLAGS, SIOCADDRT = 0x8916, 0x8914, 0x890B
request = struct.pack("16sH22x", b"lo", socket.AF_INET)
for family in socket.AF_INET, socket.AF_UNIX:
    def change(number, what):
        with socket.socket(family, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, number, what)
    for number in SIOCSIFADDR, SIOCSIFFLAGS:
        attempt("interface", lambda: change(number, request))
    attempt("route", lambda: change(SIOCADDRT, bytes(120)))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("tunnel", lambda: os.open("/dev/net/tun", os.O_RDWR))
"#;
        let printed = sandbox.attack_prints(After::Kept, &python(attack));
        for line in printed.lines() {
            let refused = [" EPERM", " EACCES", " EAFNOSUPPORT", " ENOTTY", " ENOENT"];
            assert!(refused.iter().any(|end| line.ends_with(end)), "{printed}");
        }
    });
}

#[test]
fn nobody_listens_on_the_loopback() {
    small(|sandbox| {
        let attack = r#"
ends = set()
for port in range(1, 65536):
    try:
        with socket.socket() as way:
            end = way.connect_ex(("127.0.0.1", port))
            if end:
                ends.add(errno.errorcode[end])
            # A port may be the one that the socket itself was just given.
            elif way.getsockname() != way.getpeername():
                ends.add(f"somebody at {port}")
    except OSError as error:
        ends.add(errno.errorcode[error.errno])
print("\n".join(sorted(ends)))
"#;
        assert_nobody(&sandbox.attack_prints(After::Kept, &python(attack)));
    });
}

#[test]
fn the_hosts_own_ports_are_not_reached() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    tcp.set_nonblocking(true).expect("a listener");
    udp.set_nonblocking(true).expect("a socket");
    small(|sandbox| {
        let attack = r#"
tcp, udp = map(int, sys.argv[1:])
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", tcp)))
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("127.0.0.1", udp))
        way.send(b"x")
        way.recv(1)
attempt("udp", datagram)
"#;
        let port =
            |address: std::io::Result<std::net::SocketAddr>| address.expect("an address").port();
        let job = python(attack)
            .arg(port(tcp.local_addr()))
            .arg(port(udp.local_addr()));
        let printed = sandbox.attack_prints(After::Kept, &job);
        assert_nobody(&printed);
        assert_eq!(printed.lines().count(), 2);
        let nobody = tcp.accept().expect_err("nobody has come");
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        let nothing = udp.recv(&mut [0; 8]).expect_err("nothing has come");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn the_hosts_sockets_without_a_file_are_not_reached() {
    let name = format!("quorun-attacks-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    listener.set_nonblocking(true).expect("a listener");
    small(|sandbox| {
        let attack = r#"
with socket.socket(socket.AF_UNIX) as way:
    attempt("unix", lambda: way.connect("\0" + sys.argv[1]))
"#;
        let printed = sandbox.attack_prints(After::Kept, &python(attack).arg(&name));
        assert_eq!(printed, "unix ECONNREFUSED\n");
        let nobody = listener.accept().expect_err("nobody has come");
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn the_engines_socket_is_not_found() {
    small(|sandbox| {
        let attack = r#"
import stat
found = []
for top in os.listdir("/"):
    if top in ("proc", "sys"):
        continue
    for folder, folders, names in os.walk("/" + top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode) or name.endswith(".sock"):
                    found.append(path)
            except OSError:
                pass
print(found, len(open("/proc/net/unix").readlines()))
for path in "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock":
    with socket.socket(socket.AF_UNIX) as way:
        attempt(path, lambda: way.connect(path))
"#;
        let printed = sandbox.attack_prints(After::Kept, &python(attack));
        // The heading, and the socket that counted the lines is not one of them.
        assert_eq!(
            printed,
            "[] 1\n/var/run/docker.sock ENOENT\n/run/docker.sock ENOENT\n\
             /run/containerd/containerd.sock ENOENT\n/run/podman/podman.sock ENOENT\n"
        );
    });
}
