#!/usr/bin/env bash
# vm-journal.sh IMAGE [N]: writers of the last N records (default: 20) in the guest's ring, and of the record on
# LBA 1: "counter label" per line, in the sequence of the ring.
set -euo pipefail
. "$(dirname "$0")/env.sh"
IMG=${1:?usage: vm-journal.sh IMAGE [N]} N=${2:-20}
in_net rbd export --no-progress "rbd/$IMG" - | perl -e '
  local $/; $_ = <STDIN>;
  sub rec { my ($magic, $n, undef, $label) = unpack "a4 V a16 Z32", substr $_, $_[0] * 512, 512; $magic eq "TBW1" && [$n, $label] }
  my $head = rec(1) or die "no record on LBA 1\n";
  print "LBA1 @$head\n";
  my @rows = sort { $a->[0] <=> $b->[0] } grep { $_ } map { rec($_) } 64 .. 1087;
  splice @rows, 0, @rows - $ARGV[0] if @rows > $ARGV[0];
  print "ring @$_\n" for @rows;' "$N"
