//! What binds two devices, and what passes then.

use std::time::{Duration, Instant};

use cyphonic_cloud::server::{Cloud, unix_now};
use cyphonic_proto::relayed;

use crate::common::Overlay;
use crate::node::{Node, SOON, data_packet, deliver};

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_bind_and_their_packets_pass_both_ways() {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let a = Node::join(&overlay, "a.lab", 0x1a).await;
    let b = Node::join(&overlay, "b.lab", 0x2b).await;
    let leg_b = b.bind(&a).await;
    let leg_a = a.bind(&b).await;
    assert_eq!(leg_a.peer_connection_id, leg_b.connection_id);
    assert_eq!(leg_b.peer_connection_id, leg_a.connection_id);

    let at_a = a.client.capture(a.cid, overlay.address);
    let at_b = b.client.capture(b.cid, overlay.address);
    let content = [0xc5; 1000];
    let arrived = deliver(&a.client, &overlay, &data_packet(&leg_b.connection_id, &content), &at_b);
    assert_eq!(arrived, data_packet(b.cid.as_bytes(), &content), "the receiver's own ID, all else untouched");
    let arrived = deliver(&b.client, &overlay, &data_packet(&leg_a.connection_id, &content), &at_a);
    assert_eq!(arrived, data_packet(a.cid.as_bytes(), &content));

    // The peers' handshake, inside the connections to the TRS.
    let handshake = [0xc0; 1200];
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = b.connection.clone();
    tokio::spawn(async move { receiver.receive_datagrams(|datagram| tell.send(datagram).is_ok()).await });
    let deadline = Instant::now() + SOON;
    let arrived = loop {
        a.connection.send_datagram(relayed::encode(a.context(), &handshake).unwrap());
        match told.recv_timeout(Duration::from_millis(200)) {
            Ok(datagram) => break datagram,
            Err(_) => assert!(Instant::now() < deadline, "no handshake arrived"),
        }
    };
    assert_eq!(relayed::decode(&arrived), Some((b.context(), &handshake[..])));
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_may_begin_before_its_legs_stand() {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let a = Node::join(&overlay, "a.lab", 0x1a).await;
    let b = Node::join(&overlay, "b.lab", 0x2b).await;
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = b.connection.clone();
    tokio::spawn(async move { receiver.receive_datagrams(|datagram| tell.send(datagram).is_ok()).await });
    // A busy machine may take longer than what comes early is held, or lose it: then once more.
    for turn in 1.. {
        assert!(turn < 100, "nothing that came early was passed on");
        let (setup, context) = ([turn; 16], relayed::MIN_CONTEXT + u64::from(turn));
        a.connection.send_datagram(relayed::encode(context, b"first flight").unwrap());
        a.ask(&b.fqdn, setup, context).await;
        b.ask(&a.fqdn, setup, context).await;
        if let Ok(datagram) = told.recv_timeout(Duration::from_millis(300)) {
            assert_eq!(relayed::decode(&datagram).unwrap().1, b"first flight");
            break;
        }
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_no_way_to_carry_more_than_handshakes() {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let a = Node::join(&overlay, "a.lab", 0x1a).await;
    let b = Node::join(&overlay, "b.lab", 0x2b).await;
    let c = Node::join(&overlay, "c.lab", 0x3c).await;
    let (setup, context) = ([7; 16], relayed::MIN_CONTEXT + 1);
    b.bind(&a).await;
    a.bind(&b).await;
    b.ask(&c.fqdn, setup, context).await;
    c.ask(&b.fqdn, setup, context).await;
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = b.connection.clone();
    let begun = Instant::now();
    tokio::spawn(async move { receiver.receive_datagrams(|datagram| tell.send(datagram).is_ok()).await });
    for _ in 0..100 {
        for _ in 0..50 {
            a.connection.send_datagram(relayed::encode(a.context(), b"x").unwrap());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Another's passes all the same. What arrives before it is the flood's.
    let other = || c.connection.send_datagram(relayed::encode(context, b"handshake").unwrap());
    let (mut flood, deadline) = (0, Instant::now() + SOON);
    other();
    loop {
        match told.recv_timeout(Duration::from_millis(200)) {
            Ok(datagram) if relayed::decode(&datagram).unwrap().0 == context => break,
            Ok(_) => flood += 1,
            Err(_) => other(),
        }
        assert!(Instant::now() < deadline, "no handshake arrived");
    }
    let most = 512.0 + 256.0 * begun.elapsed().as_secs_f64();
    assert!(f64::from(flood) <= most, "{flood} of 5000 arrived");
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_into_a_binding() {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let a = Node::join(&overlay, "a.lab", 0x1a).await;
    let b = Node::join(&overlay, "b.lab", 0x2b).await;
    let mallory = Node::join(&overlay, "mallory.lab", 0x3c).await;
    let leg_b = b.bind(&a).await;
    // The leg names A: one of Mallory's that names B stays alone.
    assert!(!mallory.bind(&b).await.bound);
    assert!(a.bind(&b).await.bound);

    // Mallory knows the leg's ID, but sends from another address.
    let at_b = b.client.capture(b.cid, overlay.address);
    for _ in 0..20 {
        mallory.client.send(overlay.address, &data_packet(&leg_b.connection_id, b"forged"));
    }
    let genuine = data_packet(&leg_b.connection_id, b"genuine");
    let arrived = deliver(&a.client, &overlay, &genuine, &at_b);
    assert_eq!(
        arrived,
        data_packet(b.cid.as_bytes(), b"genuine"),
        "the first to arrive, after 20 forged ones"
    );
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_stops_when_a_device_is_revoked() {
    let overlay = Overlay::found(unix_now());
    let cloud = Cloud::start(&overlay.config).await.unwrap();
    let a = Node::join(&overlay, "a.lab", 0x1a).await;
    let b = Node::join(&overlay, "b.lab", 0x2b).await;
    let leg_b = b.bind(&a).await;
    a.bind(&b).await;
    let at_b = b.client.capture(b.cid, overlay.address);
    let packet = data_packet(&leg_b.connection_id, b"content");
    deliver(&a.client, &overlay, &packet, &at_b);

    overlay.register().revoke_device(&a.fqdn, unix_now()).unwrap();
    tokio::time::timeout(SOON, a.connection.closed()).await.unwrap();
    let deadline = Instant::now() + SOON;
    // One may be late on a busy machine.
    let (mut buffer, mut silences) = ([0; 2048], 0);
    while silences < 5 {
        a.client.send(overlay.address, &packet);
        silences = if at_b.recv(&mut buffer).is_err() { silences + 1 } else { 0 };
        assert!(Instant::now() < deadline, "its packets still pass");
    }
    cloud.shutdown().await;
}
