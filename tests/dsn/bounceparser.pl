#!/usr/bin/perl
# What Mail::DeliveryStatus::BounceParser makes of reports: a line for each, `PATH BOUNCE ADDRESS=REASON ...`, BOUNCE 1 or 0.
use strict;
use warnings;
use Mail::DeliveryStatus::BounceParser;

for my $path (@ARGV) {
    open(my $file, '<:raw', $path) or die "$path: $!";
    my $raw = do { local $/; <$file> };
    # It reads mail as Unix keeps it.
    $raw =~ s/\r\n/\n/g;
    my $bounce = Mail::DeliveryStatus::BounceParser->new($raw);
    my @found = map { $_->get('email') . '=' . $_->get('std_reason') } $bounce->reports;
    s/\s//g for @found;
    print join(' ', $path, $bounce->is_bounce ? 1 : 0, sort @found), "\n";
}
