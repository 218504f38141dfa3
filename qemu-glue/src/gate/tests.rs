//! The gate between two pairs of sockets, with the tests as QEMU.
#![allow(clippy::unwrap_used)]

use super::*;

/// QEMU's ends of the sockets of one interface.
struct Guest {
    sends: UnixStream,
    network: UnixStream,
}

fn gate(limit: u64) -> (OutputGate, Guest) {
    let (sends, outgoing) = UnixStream::pair().unwrap();
    let (network, released) = UnixStream::pair().unwrap();
    let sockets = vec![Sockets { outgoing, released }];
    (
        OutputGate::start(sockets, limit).unwrap(),
        Guest { sends, network },
    )
}

impl Guest {
    fn send(&mut self, packet: &[u8]) {
        let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
        self.sends.write_all(&length).unwrap();
        self.sends.write_all(packet).unwrap();
    }

    fn arrives(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.network.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.network.read_exact(&mut packet).unwrap();
        packet
    }

    fn nothing_arrives(&mut self) {
        self.network.set_nonblocking(true).unwrap();
        let problem = self.network.read(&mut [0; 1]).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::WouldBlock);
        self.network.set_nonblocking(false).unwrap();
    }
}

#[test]
fn what_is_before_a_cut_leaves_when_it_is_released_and_not_before() {
    let (gate, mut guest) = gate(1 << 20);
    guest.send(b"passes");
    assert_eq!(guest.arrives(), b"passes");
    gate.hold();
    guest.send(b"one");
    let first = gate.cut();
    guest.send(b"two");
    let second = gate.cut();
    guest.send(b"three");
    gate.release(first);
    assert_eq!(guest.arrives(), b"one");
    guest.nothing_arrives();
    gate.release(second);
    assert_eq!(guest.arrives(), b"two");
    guest.nothing_arrives();
    gate.pass();
    assert_eq!(guest.arrives(), b"three");
}

#[test]
fn a_cut_is_exact_however_much_was_sent_before() {
    let (gate, mut guest) = gate(64 << 20);
    gate.hold();
    for round in 0..50_u8 {
        // Below what a socket holds, as the thread may not get to run.
        for packet in 0..40 {
            guest.send(&[round, packet].repeat(700));
        }
        let cut = gate.cut();
        guest.send(&[round, 255].repeat(10));
        gate.release(cut);
        for packet in 0..40 {
            assert_eq!(guest.arrives(), [round, packet].repeat(700));
        }
        guest.nothing_arrives();
        gate.release(gate.cut());
        assert_eq!(guest.arrives(), [round, 255].repeat(10));
    }
}

#[test]
fn a_slow_network_never_stops_the_guest() {
    let (gate, mut guest) = gate(64 << 20);
    let (count, size) = (200_u32, 60_000);
    for number in 0..count {
        let mut packet = vec![0; size];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        guest.send(&packet);
    }
    for number in 0..count {
        assert_eq!(guest.arrives()[..4], number.to_be_bytes());
    }
    assert_eq!(gate.counts().dropped, 0);
}

#[test]
fn nothing_leaves_a_closed_gate() {
    let (gate, mut guest) = gate(1 << 20);
    gate.hold();
    guest.send(b"held");
    let cut = gate.cut();
    gate.close();
    gate.release(cut);
    gate.pass();
    guest.nothing_arrives();
    drop(gate);
    assert_eq!(guest.network.read(&mut [0; 1]).unwrap(), 0);
}

#[tokio::test]
async fn tells_what_waits_and_what_was_dropped() {
    let (gate, mut guest) = gate(1000);
    let mut state = gate.subscribe();
    gate.hold();
    guest.send(&[1; 100]);
    state
        .wait_for(|s| s.backlog == Backlog::Waiting)
        .await
        .unwrap();
    let cut = gate.cut();
    assert_eq!(state.borrow().backlog, Backlog::Empty);
    guest.send(&[2; 500]);
    state
        .wait_for(|s| s.backlog == Backlog::Pressing)
        .await
        .unwrap();
    guest.send(&[3; 500]);
    state.wait_for(|s| s.dropped == 1).await.unwrap();
    gate.release(cut);
    assert_eq!(guest.arrives(), [1; 100]);
    let counts = gate.counts();
    assert_eq!(
        (counts.packets, counts.dropped, counts.held_bytes),
        (2, 1, 504)
    );
    drop(guest);
    state.wait_for(|s| s.broken.is_some()).await.unwrap();
}
