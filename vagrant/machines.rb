# frozen_string_literal: true

# The virtual machines of a scene of topology.yaml: which there are, what each is attached to, and how it is set up.
#
# The file's meaning is cyphonic-lab's; here is only what Vagrant must know before a machine exists. A machine makes a node
# of itself by the lab's own program (cyphonic-lab-node), which gets the same file. `ruby machines.rb SCENE [PROFILE]`
# prints it all as JSON; a test compares that with what cyphonic-lab reads.

require 'digest'
require 'ipaddr'
require 'json'
require 'yaml'

module Cyphonic
  # What a role of the topology needs.
  PACKAGES = {
    'as' => 'cyphonic-cloud', 'nms' => 'cyphonic-cloud', 'trs' => 'cyphonic-cloud', 'device' => 'cyphonic'
  }.freeze

  # An attachment of a machine to a network.
  Attachment = Struct.new(:network, :mac, :mtu, :ipv4, :ipv6, :segment, keyword_init: true)

  # A machine to be.
  Machine = Struct.new(:name, :kind, :roles, :packages, :nat, :firewall, :attachments, :provision, keyword_init: true)

  # A scene of the topology.
  class Scene
    DEFAULT = 'paper'
    # Each network is a multicast group of its own on this machine, by its port.
    FIRST_PORT = 24_000

    attr_reader :name, :profile

    def initialize(file, name: nil, profile: nil)
      @file = YAML.safe_load_file(file)
      @name = name || DEFAULT
      @profile = profile || 'zero'
      @nodes = known('scenes', @name)
      known('profiles', @profile)
    end

    # All machines, in the order of the scene.
    def machines
      @nodes.map { |name| machine(name) }
    end

    private

    def known(table, name)
      @file.fetch(table).fetch(name) do
        raise "topology.yaml has no #{table} called #{name}; there are: #{@file[table].keys.join(', ')}"
      end
    end

    def machine(name)
      node = description(name)
      attachments = node['interfaces'].select { |own| networks.include?(own['network']) }
                                      .map { |own| attachment(name, own) }
      roles = node.fetch('roles', [])
      Machine.new(
        name:, kind: router?(name) ? 'router' : 'host', roles:,
        packages: roles.map { |role| PACKAGES.fetch(role) }.uniq,
        nat: node['nat'], firewall: node['firewall'], attachments:,
        provision: [name, @name, @profile, *attachments.map { |own| "#{own.network}=#{own.mac}" }]
      )
    end

    def attachment(node, own)
      network = @file['networks'].fetch(own['network'])
      Attachment.new(
        network: own['network'], mac: mac("#{node}@#{own['network']}"), mtu: network.fetch('mtu', 1500),
        ipv4: with_length(own['ipv4'], network['ipv4']), ipv6: with_length(own['ipv6'], network['ipv6']),
        segment: FIRST_PORT + @file['networks'].keys.index(own['network'])
      )
    end

    def with_length(address, prefix)
      address && "#{address}/#{IPAddr.new(prefix).prefix}"
    end

    # A locally administered unicast address that is the same each time.
    def mac(text)
      bytes = Digest::SHA256.digest(text).bytes.first(5)
      ['02', *bytes.map { |byte| format('%02x', byte) }].join(':')
    end

    # The networks of the scene's hosts, and those on which two of its nodes are.
    def networks
      @networks ||= @file['networks'].keys.select do |network|
        members = @nodes.select { |node| on?(node, network) }
        members.length > 1 || members.any? { |node| !router?(node) }
      end
    end

    def on?(node, network)
      description(node)['interfaces'].any? { |own| own['network'] == network }
    end

    def router?(name)
      @file['routers'].key?(name)
    end

    def description(name)
      @file['routers'][name] || @file['hosts'].fetch(name)
    end
  end
end

if $PROGRAM_NAME == __FILE__
  name, profile = ARGV
  scene = Cyphonic::Scene.new(File.join(__dir__, 'topology.yaml'), name:, profile:)
  machines = scene.machines.map { |machine| machine.to_h.merge(attachments: machine.attachments.map(&:to_h)) }
  puts JSON.pretty_generate(scene: scene.name, profile: scene.profile, machines:)
end
