//! Which programs are believed to be CRIU when they connect over TCP.

use nix::unistd::geteuid;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// Whether what connects from `peer` to `local` may be CRIU: a program of our own user, of root, or
/// of another machine. That no machine connects that should not is up to the address that is
/// listened on.
///
/// On this machine the kernel tells which user's a connection is, in `/proc/net/tcp`. What it does
/// not list there is not of this machine, unless the address is one that only this machine has.
pub fn is_believed(peer: SocketAddr, local: SocketAddr) -> bool {
    /// The kernel lists connections piece by piece, and may miss one while others come and go.
    const LOOKS: usize = 5;

    // One that comes to a socket of IPv6 over IPv4 is listed as what it is.
    let (peer, local) = (canonical(peer), canonical(local));
    let table = match peer {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    let is_here = peer.ip().is_loopback() || peer.ip() == local.ip();
    for _ in 0..LOOKS {
        let Ok(table) = fs::read_to_string(table) else { return false };
        match owner(&table, peer, local) {
            Some(user) => return user == 0 || user == geteuid().as_raw(),
            None if is_here => {}
            None => return true,
        }
    }
    false
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The user whose connection this is, from its side, as long as a program has it open: one that was
/// closed is nobody's, and is listed as root's.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    const ESTABLISHED: &str = "01";

    let (from, to) = (in_table(from), in_table(to));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it = fields.next()? == from && fields.next()? == to;
        let is_open = fields.next()? == ESTABLISHED;
        let user = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?;
        (is_it && is_open && inode != "0").then_some(user)
    })
}

/// An address as the kernel prints it: words of the machine's own byte order, in hexadecimal.
fn in_table(address: SocketAddr) -> String {
    let words: String = match address.ip() {
        IpAddr::V4(ip) => hex_words(&ip.octets()),
        IpAddr::V6(ip) => hex_words(&ip.octets()),
    };
    format!("{words}:{:04X}", address.port())
}

fn hex_words(octets: &[u8]) -> String {
    let words = octets.chunks(4).filter_map(|word| word.first_chunk());
    words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn connected(address: &str) -> Option<(TcpStream, TcpStream, TcpListener)> {
        let listener = TcpListener::bind(address).ok()?;
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        Some((ours, theirs, listener))
    }

    #[test]
    fn the_owner_of_a_connection_is_found() {
        for (address, table) in [("127.0.0.1:0", "/proc/net/tcp"), ("[::1]:0", "/proc/net/tcp6")] {
            let Some((ours, theirs, _listener)) = connected(address) else { continue };
            let (peer, local) = (theirs.peer_addr().unwrap(), theirs.local_addr().unwrap());
            let owner = || owner(&fs::read_to_string(table).unwrap(), peer, local);
            assert_eq!(owner(), Some(geteuid().as_raw()));
            assert!(is_believed(peer, local));
            // The connection is still there, and nobody's.
            drop(ours);
            assert_eq!(owner(), None);
            assert!(!is_believed(peer, local));
        }
    }

    #[test]
    fn a_connection_over_ipv4_to_a_socket_of_ipv6_is_found() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return };
        let port = listener.local_addr().unwrap().port();
        let Ok(ours) = TcpStream::connect(("127.0.0.1", port)) else { return };
        let (theirs, _) = listener.accept().unwrap();
        let (peer, local) = (theirs.peer_addr().unwrap(), theirs.local_addr().unwrap());
        assert!(peer.is_ipv6());
        assert!(is_believed(peer, local));
        drop(ours);
        assert!(!is_believed(peer, local));
    }

    #[test]
    fn a_connection_of_another_user_is_not_believed() {
        let line = |user: u32, inode: u32| {
            format!(
                "  sl  local_address rem_address   st\n   0: 0100007F:BEEF 0100007F:3039 01 \
                 00000000:00000000 00:00000000 00000000 {user} 0 {inode} 1\n"
            )
        };
        if cfg!(target_endian = "big") {
            return;
        }
        let (peer, local) =
            ("127.0.0.1:48879".parse().unwrap(), "127.0.0.1:12345".parse().unwrap());
        assert_eq!(owner(&line(1234, 99), peer, local), Some(1234));
        assert_eq!(owner(&line(0, 0), peer, local), None);
        assert_eq!(owner(&line(1234, 99), local, peer), None);
    }
}
