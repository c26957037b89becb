//! `cargo xtask vagrant-rehearse`: the virtual machines' parts played by namespaces, to try all that comes
//! after a machine has booted.
//!
//! Each namespace is cabled as the Vagrantfile says, set up by the program and the arguments that
//! provisioning uses, and reached by SSH over a cable for management; a command is then run from where
//! Vagrant would be. One part can be this very machine's (`--own`), which is provisioned whole: that is for a
//! machine that is made for it, as an emulated one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::process::wait_until;
use cyphonic_lab::{Namespace, congestion};
use serde_json::Value;

use crate::workspace;

/// Programs start when the machine has time.
const PATIENCE: Duration = Duration::from_secs(120);
/// For one attempt to reach a machine.
const CONNECT: Duration = Duration::from_secs(1);
/// Where Vagrant would be, and the network by which it reaches machines (as in the Vagrantfile).
const HOST: &str = "host";
const SWITCH: &str = "switch";
const MANAGEMENT: &str = "169.254.37";
/// As much as any network carries.
const MTU: u32 = 9000;
/// Tells the command where the SSH configuration is.
const VARIABLE: &str = "CYPHONIC_SSH_CONFIG";

/// What to rehearse.
#[derive(Debug, Args)]
pub(crate) struct RehearsalArgs {
    /// The scene, and its links' properties.
    #[arg(long, default_value = "paper")]
    scene: String,
    #[arg(long, default_value = "zero")]
    profile: String,
    /// Where cyphonic-lab-node is.
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    programs: PathBuf,
    /// What `ruby vagrant/machines.rb SCENE PROFILE` has printed, where there is no Ruby.
    #[arg(long, value_name = "FILE")]
    machines: Option<PathBuf>,
    /// The folder of topology.yaml and provision.sh [default: this repository's]
    #[arg(long, value_name = "DIR")]
    vagrant: Option<PathBuf>,
    /// Play this part by this very machine, and provision it. It is not the same afterwards.
    #[arg(long, value_name = "NODE")]
    own: Option<String>,
    /// What to run; `CYPHONIC_SSH_CONFIG` is what `vagrant ssh-config` would print.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &RehearsalArgs) -> Result<()> {
    let vagrant = args.vagrant.clone().unwrap_or_else(|| workspace::root().join("vagrant"));
    let mut stage = Stage::new(args.own.clone(), vagrant)?;
    let dump = match &args.machines {
        Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => {
            let mut ruby = Command::new("ruby");
            output(ruby.arg(stage.vagrant.join("machines.rb")).args([&args.scene, &args.profile]))?
        }
    };
    let dump: Value = serde_json::from_str(&dump).context("the machines are no JSON")?;
    let machines = dump["machines"].as_array().context("the machines are not there")?;
    stage.names =
        machines.iter().map(|machine| text(&machine["name"]).map(str::to_owned)).collect::<Result<_>>()?;
    stage.cable(machines)?;
    for machine in machines {
        stage.provision(machine, &args.programs)?;
    }
    stage.let_in()?;
    println!("vagrant-rehearse: {} machines stand", machines.len());
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("there is nothing to run") };
    let mut command = stage.on(HOST, program);
    let status = command.args(arguments).env(VARIABLE, stage.file("ssh_config")).status();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

/// The namespaces; with this value they go.
struct Stage {
    prefix: String,
    dir: PathBuf,
    vagrant: PathBuf,
    own: Option<String>,
    names: Vec<String>,
    children: Vec<Child>,
}

impl Stage {
    fn new(own: Option<String>, vagrant: PathBuf) -> Result<Self> {
        let prefix = format!("rehearse-{}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { prefix, dir, vagrant, own, names: Vec::new(), children: Vec::new() })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn is_own(&self, node: &str) -> bool {
        self.own.as_deref() == Some(node)
    }

    fn namespace(&self, node: &str) -> String {
        format!("{}-{node}", self.prefix)
    }

    /// What `ip link` calls the place of a node: its namespace, or that of this machine's first process.
    fn place(&self, node: &str) -> String {
        if self.is_own(node) { "1".to_owned() } else { self.namespace(node) }
    }

    fn on(&self, node: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if self.is_own(node) {
            return Command::new(program);
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(node)]).arg(program);
        command
    }

    fn ip(&self, node: &str, batch: &str) -> Result<()> {
        feed(self.on(node, "ip").args(["-batch", "-"]), batch)
    }

    /// A switch with a bridge for each segment and one for management, and a cable from each machine to each
    /// of its own.
    fn cable(&self, machines: &[Value]) -> Result<()> {
        // A node's own program cannot, inside its namespace.
        congestion::allow()?;
        let switch = self.namespace(SWITCH);
        let mut batch = format!("netns add {}\nnetns add {switch}\n", self.namespace(HOST));
        for name in self.names.iter().filter(|name| !self.is_own(name)) {
            let _ = writeln!(batch, "netns add {}", self.namespace(name));
            let etc = Path::new("/etc/netns").join(self.namespace(name));
            fs::create_dir_all(&etc).with_context(|| format!("cannot make {}", etc.display()))?;
            fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.53\noptions timeout:5 attempts:1\n")?;
        }
        feed(Command::new("ip").args(["-batch", "-"]), &batch)?;
        feed(self.on(SWITCH, "sysctl").args(["-q", "-w", "net.ipv6.conf.default.disable_ipv6=1"]), "")?;

        let mut segments = BTreeSet::from(["management".to_owned()]);
        let (mut cables, mut ports) = (String::new(), String::new());
        let mut number = 0;
        let mut cable = |node: &str, device: &str, address: &str, segment: String| {
            number += 1;
            let place = self.place(node);
            let _ = writeln!(
                cables,
                "link add name {device} {address} mtu {MTU} netns {place} type veth peer name p{number} mtu {MTU} netns {switch}"
            );
            let _ = writeln!(ports, "link set dev p{number} master {segment}\nlink set dev p{number} up");
            segments.insert(segment);
        };
        cable(HOST, "eth0", "", "management".to_owned());
        for machine in machines {
            let name = text(&machine["name"])?;
            cable(name, "eth0", "", "management".to_owned());
            let attachments = machine["attachments"].as_array().context("a machine without attachments")?;
            for (number, own) in attachments.iter().enumerate() {
                let address = format!("address {}", text(&own["mac"])?);
                cable(name, &format!("eth{}", number + 1), &address, format!("s{}", own["segment"]));
            }
        }
        let bridge = |segment: &String| {
            let kind = format!("mtu {MTU} type bridge forward_delay 0 mcast_snooping 0");
            format!("link add name {segment} {kind}\nlink set dev {segment} up\n")
        };
        let bridges: String = segments.iter().map(bridge).collect();
        self.ip(SWITCH, &bridges)?;
        // From where no interface is called like a machine's: up to Linux 6.1 at least, names must be free
        // there too.
        self.ip(SWITCH, &cables)?;
        self.ip(SWITCH, &ports)?;
        for (number, node) in self.reached() {
            let address = format!("addr add {MANAGEMENT}.{number}/24 dev eth0\n");
            self.ip(node, &format!("link set dev lo up\n{address}link set dev eth0 up\n"))?;
        }
        Ok(())
    }

    /// The host and the machines, each with its number in the network for management.
    fn reached(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(std::iter::once(HOST).chain(self.names.iter().map(String::as_str)))
    }

    /// What provisioning does; in a namespace, only its part that concerns the network.
    fn provision(&mut self, machine: &Value, programs: &Path) -> Result<()> {
        let words = machine["provision"].as_array().context("a machine without arguments")?;
        let words = words.iter().map(text).collect::<Result<Vec<&str>>>()?;
        let [name, scene, profile, links @ ..] = words.as_slice() else {
            bail!("too few arguments: {words:?}")
        };
        if self.is_own(name) {
            let packages = machine["packages"].as_array().context("a machine without packages")?;
            let packages = packages.iter().map(text).collect::<Result<Vec<&str>>>()?.join(",");
            let mut sh = Command::new("sh");
            return feed(sh.arg(self.vagrant.join("provision.sh")).arg(packages).args(words), "");
        }
        let ready = self.file(&format!("{name}.ready"));
        let socket = UnixDatagram::bind(&ready).context("cannot make a socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let log = self.file(&format!("{name}.node"));
        let mut node = self.on(name, programs.join("cyphonic-lab-node"));
        node.arg("up").arg(self.vagrant.join("topology.yaml"));
        node.args([scene, profile, name, "resolv-conf:/etc/resolv.conf"]).args(links);
        node.env("NOTIFY_SOCKET", &ready).stdin(Stdio::null()).stderr(fs::File::create(&log)?);
        self.children.push(node.spawn().context("cannot start cyphonic-lab-node")?);
        let mut message = [0; 64];
        let length = socket.recv(&mut message).unwrap_or_default();
        if message.get(..length).is_none_or(|message| !message.starts_with(b"READY=1")) {
            bail!("{name} does not stand: {}", fs::read_to_string(&log).unwrap_or_default());
        }
        Ok(())
    }

    /// Keys, and an SSH server on each machine.
    fn let_in(&mut self) -> Result<()> {
        let file = |name: &str| self.file(name).display().to_string();
        for key in ["host-key", "user-key"] {
            feed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]), "")?;
        }
        let server = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\n\
             PasswordAuthentication no\nPidFile none\nMaxSessions 20\n",
            file("host-key"),
            file("user-key.pub")
        );
        fs::write(self.file("sshd_config"), server)?;
        fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        let mut client = String::new();
        let mut servers = Vec::new();
        for (number, name) in self.reached().skip(1) {
            let _ = write!(
                client,
                "Host {name}\n  HostName {MANAGEMENT}.{number}\n  User vagrant\n  Port 22\n  UserKnownHostsFile /dev/null\n  \
                 StrictHostKeyChecking no\n  PasswordAuthentication no\n  IdentityFile {}\n  IdentitiesOnly yes\n  LogLevel FATAL\n\n",
                file("user-key")
            );
            if self.is_own(name) {
                // Its own server runs, and lets in whom provisioning has let in.
                let keys = Path::new("/root/.ssh/authorized_keys");
                fs::copy(self.file("user-key.pub"), keys).context("cannot let the key in")?;
                continue;
            }
            let mut server = self.on(name, "/usr/sbin/sshd");
            server.args(["-D", "-e", "-f", &file("sshd_config")]).stdin(Stdio::null());
            server.stderr(fs::File::create(self.file(&format!("{name}.sshd")))?);
            servers.push(server.spawn().context("cannot start sshd")?);
        }
        fs::write(self.file("ssh_config"), client)?;
        self.children.extend(servers);
        self.await_servers()
    }

    /// As Vagrant does before it takes a machine for up.
    fn await_servers(&self) -> Result<()> {
        let host = Namespace::named(self.namespace(HOST));
        for (number, name) in self.reached().skip(1) {
            let address: SocketAddr = format!("{MANAGEMENT}.{number}:22").parse()?;
            let answers = || TcpStream::connect_timeout(&address, CONNECT).is_ok();
            if !wait_until(PATIENCE, || host.inside(answers).unwrap_or_default()) {
                let log = fs::read_to_string(self.file(&format!("{name}.sshd"))).unwrap_or_default();
                bail!("{name} has no SSH server: {log}");
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What fails here has gone already, or is nothing that could be mended.
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for node in
            self.names.iter().map(String::as_str).chain([HOST, SWITCH]).filter(|node| !self.is_own(node))
        {
            let namespace = self.namespace(node);
            let left = output(Command::new("ip").args(["netns", "pids", &namespace])).unwrap_or_default();
            for process in left.split_whitespace() {
                let _ = Command::new("kill").args(["-9", process]).status();
            }
            let _ = Command::new("ip").args(["netns", "delete", &namespace]).status();
            let _ = fs::remove_dir_all(Path::new("/etc/netns").join(&namespace));
        }
        let _ = fs::remove_dir("/etc/netns");
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a program with this input.
fn feed(command: &mut Command, input: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    // One that stops reading has failed, and says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        bail!("{name} was told:\n{input}\nand failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}
