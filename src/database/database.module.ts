import { Global, Module, type DynamicModule } from '@nestjs/common';
import { DataSource } from 'typeorm';
import { IdGenerator } from '../common';
import { Database } from './database';
import { NodeRegistry } from './node-registry';

/** Database: the one pool, the scopes that row-level security reads, and this process's place among its peers. */
@Global()
@Module({})
export class DatabaseModule {
  static with(dataSource: DataSource): DynamicModule {
    return {
      module: DatabaseModule,
      providers: [
        { provide: DataSource, useValue: dataSource },
        { provide: IdGenerator, useValue: new IdGenerator() },
        { provide: Database, useFactory: (source: DataSource) => new Database(source), inject: [DataSource] },
        NodeRegistry,
      ],
      exports: [Database, NodeRegistry, IdGenerator],
    };
  }
}
