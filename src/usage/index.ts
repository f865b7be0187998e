export * from './erase-usage';
export * from './ledger';
export * from './limits';
export * from './metering';
export * from './quotas';
export * from './roll-up';
export * from './usage-report';
export * from './usage.module';
